"""A filter that says "certainly not" of nearly every new decision, without asking the disk. Pure.

A Bloom filter over decision ids. Before an OUTCOME is appended the service must know that there is
none yet; almost always there is none, and this answers so in microseconds. "Perhaps" is then asked
of the index. Saved with the log's size and mark, so that a restart needs only what came after.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from zlib import crc32

_HEAD = struct.Struct("<8sQQI")
_MAGIC = b"TWPSEEN1"
_BITS = 27  # 16 MiB: one in a hundred wrong at ten million decisions
_MASK = (1 << _BITS) - 1
_HASHES = 4


class Seen:
    """What may have been added. Never forgets; may claim more than it was told."""

    def __init__(self, bits: bytearray | None = None) -> None:
        """Start empty, or with saved bits."""
        self._bits = bytearray(1 << (_BITS - 3)) if bits is None else bits

    def add(self, decision: str) -> None:
        """Remember a decision."""
        bits = self._bits
        number = int.from_bytes(blake2b(decision.encode(), digest_size=16).digest())
        for _ in range(_HASHES):
            bits[(number & _MASK) >> 3] |= 1 << (number & 7)
            number >>= _BITS

    def __contains__(self, decision: str) -> bool:
        """Tell whether a decision may have been added; False is certain."""
        bits = self._bits
        number = int.from_bytes(blake2b(decision.encode(), digest_size=16).digest())
        for _ in range(_HASHES):
            if not bits[(number & _MASK) >> 3] & (1 << (number & 7)):
                return False
            number >>= _BITS
        return True

    def encode(self, size: int, mark: int) -> bytes:
        """Return the filter in bytes, with the log's size up to which it is complete."""
        bits = bytes(self._bits)  # in one step: others may go on adding
        return _HEAD.pack(_MAGIC, size, mark, crc32(bits)) + bits


def decode(data: bytes) -> tuple[Seen, int, int] | None:
    """Read (filter, size, mark); None if it isn't whole."""
    if len(data) != _HEAD.size + (1 << (_BITS - 3)):
        return None
    magic, size, mark, crc = _HEAD.unpack_from(data)
    bits = bytearray(memoryview(data)[_HEAD.size :])
    if magic != _MAGIC or crc32(bits) != crc:
        return None
    return Seen(bits), size, mark
