"""The offline verifier: takes a copy of a log's directory and believes nothing in it.

Needs no service, no gRPC and no network, only the keys that signed. It recomputes every frame,
leaf hash and root, checks each signed checkpoint against the recomputed tree and against the one
before it, and names the first record that breaks. A log that was rolled back together with its own
checkpoints is only caught by a checkpoint from elsewhere: pass it as `witnessed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from services.audit import checkpoint_file, frames, sidecar, watermark
from services.audit.checkpoint import (
    Checkpoint,
    CheckpointError,
    VerifierKey,
    split_notes,
    verify,
)
from services.audit.filesystem import FileSystem, OsFileSystem
from services.audit.merkle import (
    ProofError,
    Tree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from services.audit.watermark import WATERMARK


@dataclass(frozen=True, slots=True)
class Break:
    """Something that is not as it must be; `index` is the first record that is concerned."""

    index: int
    what: str

    def __str__(self) -> str:
        return f"record {self.index}: {self.what}"


@dataclass(slots=True)
class Report:
    """What the verifier found. `first` is the break with the lowest record index."""

    size: int = 0
    root: bytes = b""
    checkpoints: int = 0
    last: Checkpoint | None = None
    breaks: list[Break] = field(default_factory=list)
    tree: Tree = field(default_factory=Tree)

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.breaks

    @property
    def first(self) -> Break | None:
        """The first break by record, if there is any."""
        return min(self.breaks, key=lambda found: found.index, default=None)

    @property
    def unsigned(self) -> int:
        """Records at the end that no checkpoint covers yet."""
        return self.size - (self.last.size if self.last else 0)


def read_leaves(files: FileSystem) -> Iterator[tuple[int, bytes]]:
    """Yield (index, leaf) in order.

    Raises:
        FrameError: at the first record that is damaged or missing.
    """
    expected = 0
    for name in frames.segment_names(files.names()):
        if frames.first_index_of(name) != expected:
            raise frames.FrameError(f"missing before {name}", expected, 0)
        try:
            for _, records in frames.read_batches(files.read_all(name), expected):
                for record in records:
                    yield record.index, record.leaf
                expected = records[-1].index + 1
        except frames.FrameError as error:
            for record in error.whole:
                yield record.index, record.leaf
            raise


def verify_log(
    files: FileSystem,
    keys: Sequence[VerifierKey],
    *,
    origin: str | None = None,
    witnessed: Sequence[str] = (),
    visit: Callable[[int, bytes], None] | None = None,
) -> Report:
    """Verify the log in `files` from nothing but its bytes and the keys.

    Args:
        files: the log's directory.
        keys: every key that may have signed a checkpoint.
        origin: the log's name, if it must be this one.
        witnessed: signed checkpoints of this log that were kept elsewhere.
        visit: called with (index, leaf) of each record that is whole.
    """
    report = Report()
    try:
        for index, leaf in read_leaves(files):
            report.tree.append(leaf_hash(leaf))
            if visit is not None:
                visit(index, leaf)
    except frames.FrameError as error:
        report.breaks.append(Break(error.index, str(error)))
    report.size, report.root = report.tree.size, report.tree.root()
    _check_side_files(files, report)
    _check_watermark(files, report)
    _check_checkpoints(files, keys, origin, report)
    for note in witnessed:
        try:
            checkpoint = verify(note, keys, origin)
        except CheckpointError as error:
            report.breaks.append(Break(0, f"the checkpoint from elsewhere: {error}"))
            continue
        known = report.last.size if report.last else 0
        if _check_root(checkpoint, 0, report, "the checkpoint from elsewhere") and (
            checkpoint.size > known  # it was durable here before anybody saw it
        ):
            report.breaks.append(Break(known, "the file of checkpoints lacks one from elsewhere"))
    return report


def verify_directory(
    directory: Path, keys: Sequence[VerifierKey], *, witnessed: Sequence[str] = ()
) -> Report:
    """Verify the log in a directory; see `verify_log`. Only reads."""
    return verify_log(OsFileSystem(directory, exclusive=False), keys, witnessed=witnessed)


def prove_inclusion(report: Report, index: int) -> list[bytes]:
    """Return a proof, already checked, that a record is under the last signed checkpoint.

    Raises:
        ProofError: no signed checkpoint covers the record, or it is not in it.
    """
    if report.last is None or index >= report.last.size:
        raise ProofError(f"no signed checkpoint covers record {index} yet")
    proof = report.tree.inclusion_proof(index, report.last.size)
    leaf = report.tree.leaf(index)
    verify_inclusion(index, report.last.size, leaf, proof, report.last.root)
    return proof


def _check_checkpoints(
    files: FileSystem, keys: Sequence[VerifierKey], origin: str | None, report: Report
) -> None:
    try:
        data = files.read_all(checkpoint_file.NAME)
    except FileNotFoundError:
        if report.size:
            report.breaks.append(Break(0, "the log has records and no checkpoints"))
        return
    before: Checkpoint | None = None
    read = 0
    for note in split_notes(data.decode(errors="replace")):
        read += len(note.encode()) + 1
        proven = before.size if before else 0
        try:
            checkpoint = verify(note, keys, origin or (before.origin if before else None))
        except CheckpointError as error:
            report.breaks.append(Break(proven, f"checkpoint {report.checkpoints}: {error}"))
            return
        if not _check_root(checkpoint, proven, report, f"checkpoint {report.checkpoints}"):
            return
        if not _check_growth(before, checkpoint, report):
            return
        report.checkpoints += 1
        report.last = before = checkpoint
    if read != len(data):
        at = before.size if before else 0
        report.breaks.append(Break(at, "the file of checkpoints ends in the middle of one"))
    elif report.size and before is None:
        report.breaks.append(Break(0, "the log has records and no checkpoints"))


def _check_root(checkpoint: Checkpoint, proven: int, report: Report, what: str) -> bool:
    if checkpoint.size > report.size:
        missing = f"{what} covers {checkpoint.size} records; from here on they can't be read"
        report.breaks.append(Break(report.size, missing))
        return False
    if report.tree.root(checkpoint.size) != checkpoint.root:
        wrong = f"{what}: a record from here up to {checkpoint.size - 1} is not the one signed"
        report.breaks.append(Break(proven, wrong))
        return False
    return True


def _check_growth(before: Checkpoint | None, now: Checkpoint, report: Report) -> bool:
    if before is None:
        return True
    if now.size < before.size:
        shrunk = f"a checkpoint of {now.size} records after one of {before.size}"
        report.breaks.append(Break(now.size, shrunk))
        return False
    try:
        proof = report.tree.consistency_proof(before.size, now.size)
        verify_consistency(before.size, now.size, proof, before.root, now.root)
    except ProofError as error:
        report.breaks.append(Break(before.size, str(error)))
        return False
    return True


def _check_side_files(files: FileSystem, report: Report) -> None:
    """Compare leaf hashes kept beside the segments; they pin a changed record exactly."""
    names = set(files.names())
    for name in frames.segment_names(list(names)):
        side = sidecar.side_name(name)
        if side not in names:
            continue
        first = frames.first_index_of(name)
        kept = sidecar.decode(name, first, files.read_all(side))
        if kept is None:
            report.breaks.append(Break(first, f"{side} is damaged"))
            continue
        for index in range(first, min(kept.next_index, report.size)):
            at = (index - first) * 32
            if kept.hashes[at : at + 32] != report.tree.leaf(index):
                report.breaks.append(Break(index, f"is not the one whose hash {side} keeps"))
                break
        else:
            data = files.read_all(name)
            if report.ok and (len(data) != kept.size or crc32(data) != kept.crc):
                report.breaks.append(Break(first, f"{name} is not the file that was sealed"))


def _check_watermark(files: FileSystem, report: Report) -> None:
    try:
        data = files.read_all(WATERMARK)
    except FileNotFoundError:
        return
    durable = watermark.decode(data)
    if not durable:
        report.breaks.append(Break(report.size, f"{WATERMARK} is damaged"))
        return
    if durable > report.size:
        gone = f"{durable} records were durable; from here on they are missing"
        report.breaks.append(Break(report.size, gone))
