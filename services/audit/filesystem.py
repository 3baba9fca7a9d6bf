"""The few file operations that the journal needs, so that a test can break each of them.

Reads go through `read_at` and `read_all`. What `Writer.write` returned from is safe; no name is
safe before `sync_directory` returned.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Protocol


class Writer(Protocol):
    """A file open for writing, by one thread at a time."""

    def reserve(self, size: int) -> None:
        """Fill up with zeros to `size` bytes, so that what is written there needs no space.

        OSError if the zeros are not all there, in whatever part.
        """

    def write(self, data: bytes, at: int) -> None:
        """Return once the data stand at `at` on stable storage; OSError if that is not known."""

    def cut(self, size: int) -> None:
        """Make the file end at `size` bytes, on stable storage."""

    def close(self) -> None:
        """Close; all that was written is safe already."""


class FileSystem(Protocol):
    """A directory's files, named without a path."""

    def names(self) -> list[str]:
        """All file names, sorted."""

    def size(self, name: str) -> int:
        """Bytes in the file."""

    def read_all(self, name: str) -> bytes:
        """The whole file; FileNotFoundError if there is none."""

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`."""

    def writer(self, name: str) -> Writer:
        """Open for writing; made if it isn't there (its name isn't safe yet)."""

    def overwrite(self, name: str, data: bytes) -> None:
        """Replace the contents at offset 0 in place, unsynced; a hint that a crash may lose."""

    def replace(self, name: str, data: bytes) -> None:
        """Put a complete file in place atomically and safely."""

    def remove(self, name: str) -> None:
        """Remove the file if it is there."""

    def sync_directory(self) -> None:
        """Make names, new and removed, safe."""

    def free_bytes(self) -> int:
        """Bytes that may still be written."""


class _OsWriter:
    """Each write is its own sync: one call into the kernel, so one wait for the interpreter."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_DSYNC | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o640)

    def reserve(self, size: int) -> None:
        end = os.fstat(self._file).st_size
        if size > end:
            self.write(bytes(size - end), end)

    def write(self, data: bytes, at: int) -> None:
        written = os.pwrite(self._file, data, at)
        while written < len(data):  # the disk took a part; the next call says why
            written += os.pwrite(self._file, memoryview(data)[written:], at + written)

    def cut(self, size: int) -> None:
        os.ftruncate(self._file, size)
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


class OsFileSystem:
    """The real thing, in one directory that it makes and locks against a second writer."""

    _MAX_OPEN = 128

    def __init__(self, directory: Path, *, exclusive: bool = True) -> None:
        """Open `directory`.

        Args:
            directory: made, with its parents, if it isn't there and `exclusive` is set.
            exclusive: hold the lock that a writer needs; readers of a copy go without.

        Raises:
            BlockingIOError: another process writes here.
        """
        self.directory = directory
        self._readers: dict[str, int] = {}
        self._hints: dict[str, int] = {}
        self._reading = threading.Lock()
        self._lock = -1
        if exclusive:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._lock)
                raise

    def close(self) -> None:
        """Give up the lock and the open files."""
        self._forget_readers()
        for file in self._hints.values():
            os.close(file)
        self._hints.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def names(self) -> list[str]:
        """Return the sorted names."""
        return sorted(path.name for path in self.directory.iterdir())

    def size(self, name: str) -> int:
        """Return the bytes in the file."""
        return (self.directory / name).stat().st_size

    def read_all(self, name: str) -> bytes:
        """Return the whole file."""
        return (self.directory / name).read_bytes()

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Read through a cached descriptor."""
        with self._reading:
            file = self._readers.get(name)
            if file is None:
                if len(self._readers) >= self._MAX_OPEN:
                    self._forget_readers()
                file = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
                self._readers[name] = file
            return os.pread(file, length, offset)

    def writer(self, name: str) -> Writer:
        """Open for writing."""
        return _OsWriter(self.directory / name)

    def overwrite(self, name: str, data: bytes) -> None:
        """Write at offset 0, unsynced."""
        file = self._hints.get(name)
        if file is None:
            file = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._hints[name] = file
        os.pwrite(file, data, 0)

    def replace(self, name: str, data: bytes) -> None:
        """Write beside, sync, rename, sync the directory."""
        temporary = self.directory / f"{name}.tmp"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            os.fdatasync(file)
        finally:
            os.close(file)
        with self._reading:  # nobody reads on in the file that was there before
            temporary.replace(self.directory / name)
            reader = self._readers.pop(name, -1)
            if reader >= 0:
                os.close(reader)
        self.sync_directory()

    def remove(self, name: str) -> None:
        """Remove if there."""
        (self.directory / name).unlink(missing_ok=True)

    def sync_directory(self) -> None:
        """Make names safe."""
        file = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def free_bytes(self) -> int:
        """Return what an unprivileged writer may still write."""
        state = os.statvfs(self.directory)
        return state.f_bavail * state.f_frsize

    def _forget_readers(self) -> None:
        for file in self._readers.values():
            os.close(file)
        self._readers.clear()
