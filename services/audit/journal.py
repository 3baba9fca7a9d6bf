"""The journal: leaves in segment files, durable batch by batch.

The rules that acknowledgements rest on:

- `append` returns only after the whole batch was written through to the disk, by one call. What
  fails is never tried again (the kernel may have dropped the pages and would report success): the
  journal is failed for good and the process must exit.
- Batches are written over zeros that were put there before, some hundred kilobytes at a time: the
  file does not grow, so the disk has nothing to note but the data, which takes half as long. A full
  disk is found when zeros are put; they are cut off again, and the journal lives on and says so.
- What a start finds in the last segment is written through once more before anybody hears of it:
  the process before may have been killed between its write and the end of the sync.
- At start a torn last batch is cut and reported, unless something proves that it had been durable:
  a batch after it, the watermark, or a signed checkpoint. Then, and for damage anywhere else, the
  journal refuses to open and names the record.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from zlib import crc32

from services.audit import frames, segments, sidecar, watermark
from services.audit.failures import CorruptLogError, JournalFailedError, JournalFullError
from services.audit.filesystem import FileSystem, Writer
from services.audit.merkle import HASH_SIZE, leaf_hash
from services.audit.segments import FULL, Hasher, Recovery
from services.audit.sidecar import Segment
from services.audit.watermark import WATERMARK

_READERS = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """When a new segment starts, and how many zeros are put at its end at a time.

    A segment stays below 4 GiB (offsets are 32 bits).
    """

    segment_records: int = 16_384
    segment_bytes: int = 256 * 1024 * 1024
    reserved_bytes: int = 256 * 1024


class Journal:
    """The segments of one log. One thread appends; any thread reads what was appended."""

    def __init__(
        self,
        files: FileSystem,
        found: list[Segment],
        limits: Limits,
        hasher: Hasher,
        *,
        watermark: bool,
    ) -> None:
        """Use `Journal.open`."""
        self._files = files
        self._hasher = hasher
        self._watermark = watermark
        self._segments = found
        self._starts = [segment.first_index for segment in found]
        self._limits = limits
        self._out: Writer | None = None
        self._room = 0  # where the zeros at the end of the file that is written to stop
        self._failed: JournalFailedError | None = None
        self._rolling = False
        self._blanking = threading.Lock()
        self._size = found[-1].next_index if found else 0

    @staticmethod
    def open(
        files: FileSystem,
        *,
        durable_size: int = 0,
        limits: Limits | None = None,
        hasher: Hasher = leaf_hash,
        watermark: bool = True,
        check_sealed: bool = True,
    ) -> tuple[Journal, Recovery]:
        """Read the log's state, and make its end fit to append to.

        Args:
            files: the log's directory.
            durable_size: a number of records that is known to have been durable, such as the size
                in the last signed checkpoint.
            limits: when a new segment starts.
            hasher: makes the 32-byte hash that is kept of each leaf.
            watermark: leave a hint after each batch that it was durable.
            check_sealed: check the bytes of every sealed segment now; without it `check_sealed`
                must be called later. A record is checked whenever it is read, in either case.

        Raises:
            CorruptLogError: a record that was durable is damaged or missing.
            OSError: the directory can't be read or written.
        """
        durable = max(durable_size, _read_watermark(files))
        found: list[Segment] = []
        rebuilt: list[str] = []
        cut = Recovery(0)
        names = frames.segment_names(files.names())
        # Checksums and reads let other threads run: the sealed segments are checked side by side.
        with ThreadPoolExecutor(max_workers=_READERS) as pool:
            sealed = dict(
                zip(
                    names[:-1],
                    pool.map(partial(segments.load_sealed, files, check=check_sealed), names[:-1]),
                    strict=True,
                )
            )
        for name in names:
            expected = found[-1].next_index if found else 0
            if frames.first_index_of(name) != expected:
                raise CorruptLogError(expected, f"its segment is missing before {name}")
            if name != names[-1]:
                segment = sealed[name]
                if segment is None:
                    segment = segments.scan_sealed(files, name, hasher)
                    rebuilt.append(sidecar.side_name(name))
            else:
                segment, cut = segments.scan_last(files, name, durable, hasher)
            found.append(segment)
        size = found[-1].next_index if found else 0
        if size < durable:
            raise CorruptLogError(size, f"missing, though {durable} records were durable")
        journal = Journal(files, found, limits or Limits(), hasher, watermark=watermark)
        return journal, Recovery(size, cut.cut_bytes, cut.cut_segment, tuple(rebuilt))

    @property
    def size(self) -> int:
        """Records that are durable."""
        return self._size

    @property
    def failed(self) -> bool:
        """Whether a write or sync failed so that the process must exit."""
        return self._failed is not None

    def check_sealed(self) -> Iterator[None]:
        """Check the bytes of a sealed segment at each step. Blocks; appends go on meanwhile.

        Raises:
            CorruptLogError: a record is damaged; it is named.
        """
        for number in range(len(self._segments) - 1):
            with self._blanking:
                segment = self._segments[number]
                data = self._files.read_all(segment.name)
            if len(data) != segment.size or crc32(data) != segment.crc:
                for _ in segments.checked_batches(data, segment):
                    pass
                raise CorruptLogError(segment.first_index, f"{segment.name} was changed")
            yield

    def sealed(self) -> list[tuple[str, int, bytearray]]:
        """Return (name, first index, leaf hashes) of each segment that takes no more."""
        return [(s.name, s.first_index, s.hashes) for s in self._segments[:-1]]

    def leaf_hashes(self, start: int = 0) -> bytes:
        """Return the concatenated 32-byte leaf hashes of all records from `start` on."""
        kept = [segment for segment in self._segments if segment.next_index > start]
        skipped = max(start - kept[0].first_index, 0) * HASH_SIZE if kept else 0
        return b"".join(segment.hashes for segment in kept)[skipped:]

    def append(self, leaves: Sequence[bytes], hashes: bytes | None = None) -> int:
        """Write a batch and return its first index once it is durable. Blocks.

        Args:
            leaves: the records' bytes, at least one.
            hashes: their concatenated leaf hashes, if the caller has them already.

        Raises:
            JournalFullError: the disk is full; nothing was kept.
            JournalFailedError: durability is unknown; exit.
        """
        if self._failed is not None:
            raise self._failed
        hashes = b"".join(map(self._hasher, leaves)) if hashes is None else hashes
        if len(hashes) != len(leaves) * HASH_SIZE or not leaves:
            raise ValueError("a batch needs records, and one hash for each")
        first = self._size
        buffers, offsets = frames.batch(first, leaves)
        data = b"".join(buffers)
        try:
            segment, out = self._current(len(data), len(leaves))
            self._make_room(out, segment, len(data))
            out.write(data, segment.size)
        except JournalFullError:
            raise
        except OSError as error:
            self._failed = JournalFailedError(f"writing the log failed: {error}")
            raise self._failed from error
        start = segment.size
        segment.offsets.extend([start + offset for offset in offsets])
        segment.hashes += hashes
        segment.size += len(data)
        segment.crc = crc32(data, segment.crc)
        self._size = first + len(leaves)
        if self._watermark:
            self._mark()
        return first

    def read(self, index: int) -> bytes:
        """Return the leaf at `index`.

        Raises:
            IndexError: there is none (yet).
            CorruptLogError: its checksum differs.
        """
        if not 0 <= index < self._size:
            raise IndexError(f"record {index} of {self._size}")
        segment = self._segment_of(index)
        try:
            return self._read_from(segment, index)
        except CorruptLogError:  # or it was written anew since the look at its offsets
            with self._blanking:
                return self._read_from(self._segment_of(index), index)

    def roll(self) -> None:
        """Let the next batch begin a new segment, so that the present one is sealed."""
        self._rolling = True

    def is_sealed(self, index: int) -> bool:
        """Tell whether a record stands in a segment that takes no more."""
        return self._segment_of(index) is not self._segments[-1]

    def is_blank(self, index: int) -> bool:
        """Tell whether a record is empty, as `blank` leaves it."""
        segment = self._segment_of(index)
        at = (index - segment.first_index) * HASH_SIZE
        return segment.hashes[at : at + HASH_SIZE] == self._hasher(b"")

    def blank(self, indexes: Iterable[int]) -> None:
        """Write sealed segments anew with these records empty. Blocks; appends go on meanwhile.

        Each segment is replaced as a whole, so a crash leaves the old one or the new one. Only
        for a log that nothing is proven of by its hashes, as that of the payloads.

        Raises:
            CorruptLogError: a segment is damaged.
            OSError: the disk can't take it; segments before it were replaced.
        """
        by_segment: dict[int, set[int]] = {}
        for index in indexes:
            number = bisect.bisect_right(self._starts, index) - 1
            by_segment.setdefault(number, set()).add(index)
        for number, gone in sorted(by_segment.items()):
            old = self._segments[number]
            if old is self._segments[-1]:
                raise ValueError(f"{old.name} is still written to")
            data = self._files.read_all(old.name)[: old.size]
            new, replaced = segments.blanked(data, old, gone, self._hasher)
            with self._blanking:
                self._files.replace(new.name, replaced)
                self._segments[number] = new
            self._seal(new)

    def _segment_of(self, index: int) -> Segment:
        return self._segments[bisect.bisect_right(self._starts, index) - 1]

    def _read_from(self, segment: Segment, index: int) -> bytes:
        at = segment.offsets[index - segment.first_index]
        head = self._files.read_at(segment.name, at, frames.RECORD_HEADER.size + 1024)
        length, crc = frames.RECORD_HEADER.unpack_from(head)
        leaf = head[frames.RECORD_HEADER.size : frames.RECORD_HEADER.size + length]
        if len(leaf) < length <= self._limits.segment_bytes:
            leaf = self._files.read_at(segment.name, at + frames.RECORD_HEADER.size, length)
        if len(leaf) != length or frames.record_crc(index, leaf) != crc:
            raise CorruptLogError(index, f"its checksum differs, in {segment.name} at {at}")
        return leaf

    def scan(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (index, leaf) of each durable record from `start` on, in order."""
        end = self._size
        for segment in list(self._segments):
            if segment.next_index <= start:
                continue
            data = self._files.read_all(segment.name)[: segment.size]
            for _, records in segments.checked_batches(data, segment):
                for record in records:
                    if start <= record.index < end:
                        yield record.index, record.leaf

    def close(self) -> None:
        """Close the file that is written to. All that was acknowledged is durable already."""
        out, self._out = self._out, None
        if out is not None:
            if self._failed is None:
                with contextlib.suppress(OSError):  # the next start would cut it as well
                    out.cut(self._segments[-1].size)
            out.close()

    def _current(self, size: int, count: int) -> tuple[Segment, Writer]:
        """Return the segment to write to, a new one if the present one is full."""
        segment = self._segments[-1] if self._segments else None
        full = (
            segment is not None
            and len(segment.offsets) > 0
            and (
                len(segment.offsets) + count > self._limits.segment_records
                or segment.size + size > self._limits.segment_bytes
                or self._rolling
            )
        )
        if segment is None or full:
            if segment is not None:
                self._finish(segment)
            self._rolling = False
            sealed, segment = segment, segments.start_segment(self._files, self._size)
            if sealed is not None:
                self._seal(sealed)
            self._segments.append(segment)
            self._starts.append(segment.first_index)
        if self._out is None:
            self._out = self._files.writer(segment.name)
            self._room = self._files.size(segment.name)
        return segment, self._out

    def _finish(self, segment: Segment) -> None:
        """Cut the zeros off that are left; nothing is written to this segment any more."""
        out, self._out = self._out or self._files.writer(segment.name), None
        try:
            out.cut(segment.size)
        finally:
            out.close()

    def _seal(self, segment: Segment) -> None:
        """Write the side file; a start without it is slower, and no worse."""
        try:
            self._files.replace(sidecar.side_name(segment.name), sidecar.encode(segment))
        except OSError:
            return

    def _make_room(self, out: Writer, segment: Segment, size: int) -> None:
        """See to it that a batch of this size is written over zeros."""
        end = segment.size + size
        if end <= self._room:
            return
        step = self._limits.reserved_bytes
        room = -(-end // step) * step
        try:
            out.reserve(room)
        except OSError as error:
            if error.errno not in FULL:
                raise
            out.cut(segment.size)
            self._room = segment.size
            raise JournalFullError(f"the log's disk is full: {error}") from error
        self._room = room

    def _mark(self) -> None:
        """Leave the hint that all up to here was durable. Unsynced, so it costs next to nothing."""
        try:
            self._files.overwrite(WATERMARK, watermark.encode(self._size))
        except OSError:
            return


def _read_watermark(files: FileSystem) -> int:
    try:
        return watermark.decode(files.read_all(WATERMARK))
    except FileNotFoundError:
        return 0
