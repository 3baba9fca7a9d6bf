"""Segment files: begun, read at a start, made fit to write to, and written anew."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from zlib import crc32

from services.audit import frames, sidecar
from services.audit.failures import CorruptLogError, JournalFullError
from services.audit.filesystem import FileSystem
from services.audit.merkle import HASH_SIZE
from services.audit.sidecar import Segment

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Hasher = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening found.

    Attributes:
        size: records in the log.
        cut_bytes: bytes of a torn last batch that were cut; 0 after an orderly end.
        cut_segment: the segment they were cut from, or "".
        rebuilt: names of side files that were made anew.
    """

    size: int
    cut_bytes: int = 0
    cut_segment: str = ""
    rebuilt: tuple[str, ...] = ()


def start_segment(files: FileSystem, first_index: int) -> Segment:
    """Make a segment whose name and header are durable.

    Raises:
        JournalFullError: the disk is full; the segment isn't there.
        OSError: whether it is there is unknown.
    """
    name = frames.segment_name(first_index)
    header = frames.segment_header(first_index)
    out = files.writer(name)
    try:
        out.cut(0)
        try:
            out.reserve(len(header))
        except OSError as error:
            if error.errno not in FULL:
                raise
            files.remove(name)
            raise JournalFullError(f"the log's disk is full: {error}") from error
        out.write(header, 0)
        files.sync_directory()
    finally:
        out.close()
    return Segment(name, first_index, size=len(header), crc=crc32(header))


def load_sealed(files: FileSystem, name: str, *, check: bool) -> Segment | None:
    """Read a sealed segment's side file; None if the segment must be scanned instead."""
    try:
        side = files.read_all(sidecar.side_name(name))
    except FileNotFoundError:
        return None
    segment = sidecar.decode(name, frames.first_index_of(name), side)
    if segment is None or files.size(name) != segment.size:
        return None
    if not check:
        return segment
    return segment if crc32(files.read_all(name)) == segment.crc else None


def scan_sealed(files: FileSystem, name: str, hasher: Hasher) -> Segment:
    """Read a sealed segment's records, and give it the side file that it lacks."""
    data = files.read_all(name)
    segment = _blank(name, data)
    for stop, records in checked_batches(data, segment):
        _take(segment, data, stop, records, hasher)
    if segment.size < len(data):  # a copy that was made while it was written to
        out = files.writer(name)
        try:
            out.cut(segment.size)
        finally:
            out.close()
    files.replace(sidecar.side_name(name), sidecar.encode(segment))
    return segment


def scan_last(
    files: FileSystem, name: str, durable: int, hasher: Hasher
) -> tuple[Segment, Recovery]:
    """Scan the last segment, cut what stands after its last whole batch, and make that one safe."""
    data = files.read_all(name)
    segment = _blank(name, data)
    last_batch, torn = 0, 0
    try:
        for stop, records in frames.read_batches(data, segment.first_index):
            last_batch = segment.size
            _take(segment, data, stop, records, hasher)
    except frames.FrameError as error:
        later = frames.later_batch(data, error.offset, segment.next_index)
        if later is not None:
            raise CorruptLogError(
                error.index, f"{error}, in {name}; records from {later} on follow it"
            ) from error
        if durable > segment.next_index:
            raise CorruptLogError(
                error.index, f"{error}, in {name}; {durable} records were durable"
            ) from error
        torn = len(data.rstrip(b"\0")) - error.offset
        if error.offset == 0:  # the header itself: nothing of this segment was ever durable
            return start_segment(files, segment.first_index), Recovery(0, torn, name)
    out = files.writer(name)
    try:
        out.cut(segment.size)
        out.write(data[last_batch : segment.size], last_batch)
        files.sync_directory()
    finally:
        out.close()
    return segment, Recovery(0, torn, name if torn else "")


def blanked(
    data: bytes, old: Segment, gone: Collection[int], hasher: Hasher
) -> tuple[Segment, bytes]:
    """Return a segment with some of its records empty, and its bytes."""
    header = frames.segment_header(old.first_index)
    new = Segment(old.name, old.first_index, hashes=bytearray(old.hashes), size=len(header))
    parts = [header]
    for _, batch in checked_batches(data, old):
        leaves = [b"" if record.index in gone else record.leaf for record in batch]
        buffers, offsets = frames.batch(batch[0].index, leaves)
        new.offsets.extend([new.size + offset for offset in offsets])
        parts.extend(buffers)
        new.size += sum(map(len, buffers))
    empty = hasher(b"")
    for index in gone:
        at = (index - old.first_index) * HASH_SIZE
        new.hashes[at : at + HASH_SIZE] = empty
    written = b"".join(parts)
    new.crc = crc32(written)
    return new, written


def checked_batches(data: bytes, segment: Segment) -> Iterator[tuple[int, list[frames.Record]]]:
    """Yield each batch as (offset after it, its records); CorruptLogError names a damaged one."""
    try:
        yield from frames.read_batches(data, segment.first_index)
    except frames.FrameError as error:
        raise CorruptLogError(error.index, f"{error}, in {segment.name}") from error


def _blank(name: str, data: bytes) -> Segment:
    header = data[: frames.SEGMENT_HEADER.size]
    return Segment(name, frames.first_index_of(name), size=len(header), crc=crc32(header))


def _take(
    segment: Segment, data: bytes, stop: int, records: list[frames.Record], hasher: Hasher
) -> None:
    """Add a batch that was read to what is known of the segment."""
    segment.offsets.extend([record.offset for record in records])
    segment.hashes += b"".join([hasher(record.leaf) for record in records])
    segment.crc = crc32(data[segment.size : stop], segment.crc)
    segment.size = stop
