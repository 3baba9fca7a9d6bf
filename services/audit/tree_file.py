r"""A sealed segment's part of the Merkle tree, kept so that a start need not hash it again. Pure.

The inner nodes that the segment's leaves completed. Derived: one that is missing or damaged is
computed from the leaf hashes, and a tree that does not lead to a signed root is computed anew
before anybody is accused.

    "TWPTREE1" | first index u64 | next index u64 | crc32 of the segment's leaf hashes
    | inner nodes, level by level, 32 bytes each | crc32 of all the above
"""

from __future__ import annotations

import struct
from zlib import crc32

from services.audit.frames import SUFFIX
from services.audit.merkle import HASH_SIZE

_HEAD = struct.Struct("<8sQQI")
_CRC = struct.Struct("<I")
_MAGIC = b"TWPTREE1"
TREE_SUFFIX = ".tree"


def tree_name(segment: str) -> str:
    """Name of a segment's tree file."""
    return segment.removesuffix(SUFFIX) + TREE_SUFFIX


def encode(first: int, stop: int, hashes: bytes | bytearray, inner: bytes) -> bytes:
    """Return the file of the leaves [first, stop) with these hashes and inner nodes."""
    body = _HEAD.pack(_MAGIC, first, stop, crc32(hashes)) + inner
    return body + _CRC.pack(crc32(body))


def decode(data: bytes, first: int, hashes: bytes | bytearray) -> bytes | None:
    """Return the inner nodes; None if the file is not a whole one of just these leaves."""
    if len(data) < _HEAD.size + _CRC.size:
        return None
    stop = first + len(hashes) // HASH_SIZE
    if not data.startswith(_HEAD.pack(_MAGIC, first, stop, crc32(hashes))):
        return None
    body, (crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
    return body[_HEAD.size :] if crc32(body) == crc else None
