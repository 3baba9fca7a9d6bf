r"""The log's file format, read and written. Pure.

A segment is a header and then batches; a batch is a header and then its records. What one sync
made durable is one batch, so a batch is there as a whole or, after a crash, not at all; and since
a batch is only written once the one before it is durable, a batch that follows proves that the one
before was complete. The segment that is written to ends in zeros, which batches are written over;
they are cut off when it is full. All integers are little-endian.

    segment header, 20 bytes: "TWPSEG1\n" | first record's index u64 | crc32 of these 16 bytes
    batch header, 24 bytes:   "BAT1" | records u32 | first record's index u64 | body bytes u32
                              | crc32 of these 20 bytes
    record, 8 bytes + leaf:   leaf bytes u32 | crc32(index u64 | leaf bytes u32 | leaf) | leaf

The CRC of a record covers its index, so that a record that was moved is seen where it stands.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

SEGMENT_MAGIC = b"TWPSEG1\n"
BATCH_MAGIC = b"BAT1"
SEGMENT_HEADER = struct.Struct("<8sQI")
BATCH_HEADER = struct.Struct("<4sIQII")
RECORD_HEADER = struct.Struct("<II")
_SEED = struct.Struct("<QI")
SUFFIX = ".seg"
SIDE_SUFFIX = ".idx"


class FrameError(ValueError):
    """Bytes that are not what was written.

    Attributes:
        index: the index of the first record that can't be read.
        offset: where its batch starts in the segment.
        whole: the records of its batch that stand before it.
    """

    def __init__(self, message: str, index: int, offset: int, whole: Sequence[Record] = ()) -> None:
        super().__init__(message)
        self.index = index
        self.offset = offset
        self.whole = whole


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it stands in a segment; `offset` is that of its frame."""

    index: int
    offset: int
    leaf: bytes


def segment_name(first_index: int) -> str:
    """Name of the segment whose first record has this index; names sort as indexes do."""
    return f"{first_index:016d}{SUFFIX}"


def segment_names(names: Sequence[str]) -> list[str]:
    """Return the names that are segments, in order."""
    return sorted(name for name in names if name.endswith(SUFFIX) and name[:-4].isdecimal())


def first_index_of(name: str) -> int:
    """Return the first record's index as the segment's name states it."""
    return int(name.removesuffix(SUFFIX))


def segment_header(first_index: int) -> bytes:
    """Return the header of a segment."""
    head = SEGMENT_HEADER.pack(SEGMENT_MAGIC, first_index, 0)[:16]
    return head + struct.pack("<I", crc32(head))


def is_segment_header(data: bytes, first_index: int) -> bool:
    """Tell whether the data start with the header of this very segment."""
    return data[: SEGMENT_HEADER.size] == segment_header(first_index)


def record_crc(index: int, leaf: bytes) -> int:
    """CRC of a record at an index."""
    return crc32(leaf, crc32(_SEED.pack(index, len(leaf))))


def batch(first_index: int, leaves: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Frame a batch.

    Returns:
        The buffers to write one after the other, and each record's offset from the batch's start.
    """
    buffers: list[bytes] = [b""]
    offsets: list[int] = []
    at = BATCH_HEADER.size
    for index, leaf in enumerate(leaves, first_index):
        length = len(leaf)
        offsets.append(at)
        buffers += (RECORD_HEADER.pack(length, crc32(leaf, crc32(_SEED.pack(index, length)))), leaf)
        at += RECORD_HEADER.size + length
    head = BATCH_HEADER.pack(BATCH_MAGIC, len(leaves), first_index, at - BATCH_HEADER.size, 0)[:20]
    buffers[0] = head + struct.pack("<I", crc32(head))
    return buffers, offsets


def read_batches(data: bytes, first_index: int) -> Iterator[tuple[int, list[Record]]]:
    """Yield each batch of a segment as (offset after it, its records).

    Args:
        data: the whole segment, with or without the zeros at its end.
        first_index: the index that its first record must have.

    Raises:
        FrameError: at the first thing that is not as it was written.
    """
    if not is_segment_header(data, first_index):
        raise FrameError("the segment's header is not its own", first_index, 0)
    at, index, end = SEGMENT_HEADER.size, first_index, len(data)
    while at < end:
        head = batch_header(data, at)
        if head is None:
            if data.count(0, at) == end - at:
                return
            raise FrameError("no batch header where one must be", index, at)
        count, stated, body = head
        if stated != index:
            raise FrameError(f"a batch of record {stated} where {index} must be", index, at)
        stop = at + BATCH_HEADER.size + body
        records: list[Record] = []
        frame = at + BATCH_HEADER.size
        for position in range(index, index + count):
            leaf_at = frame + RECORD_HEADER.size
            if leaf_at > min(stop, end):
                raise FrameError("the record is cut off", position, at, records)
            length, crc = RECORD_HEADER.unpack_from(data, frame)
            leaf = data[leaf_at : leaf_at + length]
            if leaf_at + length > stop or len(leaf) != length:
                raise FrameError("the record is cut off", position, at, records)
            if record_crc(position, leaf) != crc:
                raise FrameError("the record's checksum differs", position, at, records)
            records.append(Record(position, frame, leaf))
            frame = leaf_at + length
        if frame != stop:
            raise FrameError("the batch holds more than its records", index, at)
        yield stop, records
        at, index = stop, index + count


def batch_header(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Return (records, first index, body bytes) of the batch header at `at`, if there is one."""
    if at + BATCH_HEADER.size > len(data):
        return None
    magic, count, first, body, crc = BATCH_HEADER.unpack_from(data, at)
    if magic != BATCH_MAGIC or crc32(data[at : at + 20]) != crc or not count:
        return None
    return count, first, body


def later_batch(data: bytes, at: int, index: int) -> int | None:
    """Return the first record's index of a batch that follows the one at `at`, if any does.

    Its presence proves that what stands at `at` was durable once, so that damage there is damage
    and not the trace of a crash. Where the header at `at` is whole it says where to look; only
    where it isn't are the bytes searched.
    """
    head = batch_header(data, at)
    if head is not None:
        following = batch_header(data, at + BATCH_HEADER.size + head[2])
        return following[1] if following else None
    found = data.find(BATCH_MAGIC, at + 1)
    while found >= 0:
        head = batch_header(data, found)
        if head is not None and head[1] > index:
            return head[1]
        found = data.find(BATCH_MAGIC, found + 1)
    return None
