r"""What a restart needs of a full segment without reading its records again. Pure.

A side file holds a sealed segment's length and checksum, where each record starts, and the leaf
hashes. It is derived: one that is missing or damaged is made anew from the segment.

    "TWPIDX1\n" | first index u64 | records u32 | segment bytes u64 | crc32 of the segment
    | offsets u32 each | leaf hashes 32 bytes each | crc32 of all the above
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from zlib import crc32

from services.audit.frames import SIDE_SUFFIX, SUFFIX
from services.audit.merkle import HASH_SIZE

_MAGIC = b"TWPIDX1\n"
_HEAD = struct.Struct("<8sQIQI")
_CRC = struct.Struct("<I")


@dataclass(slots=True)
class Segment:
    """What is known of one segment: where each record is, its hashes, its checksum so far."""

    name: str
    first_index: int
    offsets: array[int] = field(default_factory=lambda: array("I"))
    hashes: bytearray = field(default_factory=bytearray)
    size: int = 0
    crc: int = 0

    @property
    def next_index(self) -> int:
        """The index that the next record after this segment's last has."""
        return self.first_index + len(self.offsets)


def side_name(segment: str) -> str:
    """Name of a segment's side file."""
    return segment.removesuffix(SUFFIX) + SIDE_SUFFIX


def encode(segment: Segment) -> bytes:
    """Return the side file of a sealed segment."""
    body = b"".join(
        (
            _HEAD.pack(
                _MAGIC, segment.first_index, len(segment.offsets), segment.size, segment.crc
            ),
            segment.offsets.tobytes(),
            segment.hashes,
        )
    )
    return body + _CRC.pack(crc32(body))


def decode(name: str, first_index: int, data: bytes) -> Segment | None:
    """Read a side file; None if it is not a whole one of the segment with this first index."""
    if len(data) < _HEAD.size + _CRC.size or crc32(data[:-4]) != _CRC.unpack(data[-4:])[0]:
        return None
    magic, first, count, size, crc = _HEAD.unpack_from(data)
    offsets = array("I")
    hashes_at = _HEAD.size + count * offsets.itemsize
    if magic != _MAGIC or first != first_index:
        return None
    if len(data) != hashes_at + count * HASH_SIZE + _CRC.size:
        return None
    offsets.frombytes(data[_HEAD.size : hashes_at])
    return Segment(name, first, offsets, bytearray(data[hashes_at:-4]), size, crc)
