"""The watermark: a hint, left after each batch, that all up to a size was durable. Pure.

It is written without a sync, so a crash may lose it. Where it is whole it proves that records are
missing from a tail that was cut off.
"""

from __future__ import annotations

import struct
from zlib import crc32

WATERMARK = "WATERMARK"
_MARK = struct.Struct("<QI")


def encode(size: int) -> bytes:
    """Return the file's bytes."""
    packed = _MARK.pack(size, 0)[:8]
    return packed + struct.pack("<I", crc32(packed))


def decode(data: bytes) -> int:
    """Return the size; 0 if the bytes are no watermark."""
    if len(data) != _MARK.size:
        return 0
    size, crc = _MARK.unpack(data)
    return int(size) if crc32(data[:8]) == crc else 0
