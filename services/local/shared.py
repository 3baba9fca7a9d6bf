"""Shared memory for large tensors: one file in /dev/shm that Triton maps too.

A tensor of some MiB would be copied five times on its way through gRPC; here it is copied once. The
file has a name of its own for each process, starts with PREFIX, and is locked as long as its
process lives: a file that can be locked belongs to nobody any more, whatever became of its process,
and whatever namespace that lived in. `sweep` removes such files at every start.

System memory only. CUDA's would save the copy to the device where model and caller share a GPU; the
local path has its tensors in main memory, from a socket, so there is nothing to hand over.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "twinpath-local-"
FOLDER = Path("/dev/shm")  # noqa: S108 - POSIX shared memory lives there on Linux
# Nobody can say whether Triton still reads what a call that failed had put there. It has let go
# after this time, which is longer than any request waits in its queue.
_LIMBO_S = 120.0


@dataclass(frozen=True, slots=True)
class Slot:
    """A piece of the file, in bytes."""

    offset: int
    size: int


class Arena:
    """One process's file. Not for threads. Raises OSError by the constructor."""

    def __init__(self, size: int, folder: Path = FOLDER) -> None:
        self.name = f"{PREFIX}{secrets.token_hex(8)}"
        self.size = size
        self._path = folder / self.name
        self._taken: list[Slot] = []  # by offset
        self._limbo: list[tuple[float, Slot]] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, size)  # takes no memory yet
            self._map = mmap.mmap(self._file, size)
        except BaseException:
            self.close()
            raise

    def put(self, content: bytes, now: float) -> Slot | None:
        """Copy a tensor's contents in; None where there is no room, in the file or the machine."""
        self._let_go(now)
        size = -(-len(content) // mmap.PAGESIZE) * mmap.PAGESIZE
        offset = at = 0
        for at, slot in enumerate([*self._taken, Slot(self.size, 0)]):  # noqa: B007 - used below
            if slot.offset - offset >= size:
                break
            offset = slot.offset + slot.size
        else:
            return None
        try:
            # A file system that is full says so here; a write would end the process (SIGBUS).
            os.posix_fallocate(self._file, offset, size)
        except OSError:
            return None
        self._taken.insert(at, Slot(offset, size))
        self._map[offset : offset + len(content)] = content
        return self._taken[at]

    def free(self, slot: Slot) -> None:
        """Give a piece back that Triton has read."""
        self._taken.remove(slot)

    def retire(self, slot: Slot, now: float) -> None:
        """Give a piece back that Triton may still read: it is not used again for a while."""
        self._limbo.append((now + _LIMBO_S, slot))

    def _let_go(self, now: float) -> None:
        while self._limbo and self._limbo[0][0] <= now:
            self.free(self._limbo.pop(0)[1])

    def close(self) -> None:
        """Remove the file. Who has mapped it keeps what he has."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def sweep(folder: Path = FOLDER) -> list[str]:
    """Remove the files of processes that are no more; returns their names."""
    gone = []
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _opened(path) as file:  # another user's; gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            gone.append(path.name)
    return gone


def is_live(name: str, folder: Path = FOLDER) -> bool:
    """Tell whether a file's process lives."""
    try:
        with _opened(folder / name) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it is locked, or not ours to judge
    return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield file
    finally:
        os.close(file)
