"""The log's own checkpoints, one after the other in one append-only file."""

from __future__ import annotations

from collections.abc import Sequence

from services.audit.checkpoint import (
    Checkpoint,
    CheckpointError,
    SignerKey,
    VerifierKey,
    sign,
    split_notes,
    verify,
)
from services.audit.filesystem import FileSystem

NAME = "checkpoints"


class CheckpointFile:
    """Reads at start, then only appends. Its last checkpoint is what the log can't go back behind.

    A checkpoint is durable before anybody outside may see it.
    """

    def __init__(self, files: FileSystem, origin: str, keys: Sequence[VerifierKey]) -> None:
        """Read the file, and cut a last note that a crash tore.

        Args:
            files: the log's directory.
            origin: the log's name.
            keys: every key that ever signed, the present one included.

        Raises:
            CheckpointError: a note is false, of another log, or smaller than the one before.
        """
        self._files = files
        self.last: Checkpoint | None = None
        self.last_note = ""
        self.cut_bytes = 0
        try:
            data = files.read_all(NAME)
        except FileNotFoundError:
            data = b""
        whole = 0
        for note in split_notes(data.decode(errors="replace")):
            checkpoint = verify(note, keys, origin)
            if self.last is not None and checkpoint.size < self.last.size:
                raise CheckpointError(f"size {checkpoint.size} after {self.last.size}")
            self.last, self.last_note = checkpoint, note
            whole += len(note.encode()) + 1
        self._out = files.writer(NAME)
        self._end = whole
        self.cut_bytes = len(data) - whole
        if self.cut_bytes:
            self._out.cut(whole)
        if self.last is not None:  # who wrote it may have been killed before it was durable
            last = self.last_note.encode() + b"\n"
            self._out.write(last, whole - len(last))
            files.sync_directory()

    def append(self, checkpoint: Checkpoint, signers: Sequence[SignerKey]) -> str:
        """Sign, make durable, and return the note. Blocks.

        Raises:
            OSError: it is not known to be durable; a failed sync must not be retried.
        """
        note = sign(checkpoint, signers)
        written = note.encode() + b"\n"
        self._out.write(written, self._end)
        self._end += len(written)
        if self.last is None:
            self._files.sync_directory()
        self.last, self.last_note = checkpoint, note
        return note

    def close(self) -> None:
        """Close the file."""
        self._out.close()
