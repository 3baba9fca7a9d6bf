"""A file system that loses what wasn't synced, in the worst order, and that can fail on demand.

What a file holds is tracked twice: as programs see it, and as it stands on the platter. Unsynced
writes reach the platter at a crash in any order, in part, torn at 512-byte sectors or mid-sector,
or not at all. Unsynced names may vanish.
"""

# ruff: noqa: D102, D103
from __future__ import annotations

import errno
import random
from collections.abc import Callable

SECTOR = 512


class Crash(BaseException):
    """The power went. Not an Exception: no code under test may catch it."""


class SimFile:
    def __init__(self) -> None:
        self.seen = bytearray()
        self.platter = bytearray()
        self.pending: list[tuple[int, bytes] | int] = []  # a write at an offset, or a cut to a size

    def write_through(self, data: bytes, at: int) -> None:
        """Put the data on the platter, and nothing else that is pending but cuts."""
        for cut in [operation for operation in self.pending if isinstance(operation, int)]:
            del self.platter[cut:]
        self.pending = [
            piece
            for operation in self.pending
            if not isinstance(operation, int)
            for piece in _around(operation, at, at + len(data))
        ]
        _put(self.platter, at, data)


class SimFileSystem:
    """`before(operation)` is called ahead of each operation and may raise OSError or Crash."""

    def __init__(self, before: Callable[[str], None] = lambda operation: None) -> None:
        self.before = before
        self.files: dict[str, SimFile] = {}
        self.durable_names: dict[str, SimFile] = {}
        self.tear: Callable[[str, bytes], bytes] | None = None
        self.free = 1 << 40

    def crash(self, chance: random.Random) -> SimFileSystem:
        """Return what the machine finds after the power came back."""
        found = SimFileSystem()
        names = dict(self.durable_names)
        for name in set(self.files) | set(self.durable_names):  # unsynced name changes: either way
            if self.files.get(name) is not self.durable_names.get(name) and chance.random() < 0.5:
                if name in self.files:
                    names[name] = self.files[name]
                else:
                    names.pop(name, None)
        for name, file in names.items():
            survivor = SimFile()
            survivor.platter = _settle(file, chance)
            survivor.seen = bytearray(survivor.platter)
            found.files[name] = found.durable_names[name] = survivor
        return found

    # ---- the FileSystem protocol ----------------------------------------------------------
    def names(self) -> list[str]:
        return sorted(self.files)

    def size(self, name: str) -> int:
        return len(self.files[name].seen)

    def read_all(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return bytes(self.files[name].seen)

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        return bytes(self.files[name].seen[offset : offset + length])

    def writer(self, name: str) -> SimWriter:
        self.before("open")
        return SimWriter(self, self.files.setdefault(name, SimFile()))

    def overwrite(self, name: str, data: bytes) -> None:
        self.before("overwrite")
        file = self.files.setdefault(name, SimFile())
        file.seen[0 : len(data)] = data
        file.pending.append((0, data))

    def replace(self, name: str, data: bytes) -> None:
        self.before("replace.write")
        file = SimFile()
        file.seen, file.pending = bytearray(data), [(0, data)]
        self.files[f"{name}.tmp"] = file
        self.before("replace.sync")
        file.platter, file.pending = bytearray(data), []
        self.before("replace.rename")
        del self.files[f"{name}.tmp"]
        self.files[name] = file
        self.before("replace.sync_directory")
        self.durable_names = dict(self.files)

    def remove(self, name: str) -> None:
        self.before("remove")
        self.files.pop(name, None)

    def sync_directory(self) -> None:
        self.before("sync_directory")
        self.durable_names = dict(self.files)

    def free_bytes(self) -> int:
        return self.free


class SimWriter:
    """A write through to the platter takes along just what it wrote, as O_DSYNC does."""

    def __init__(self, system: SimFileSystem, file: SimFile) -> None:
        self.system, self.file = system, file

    def reserve(self, size: int) -> None:
        self._put("reserve", bytes(max(size - len(self.file.seen), 0)), len(self.file.seen))

    def write(self, data: bytes, at: int) -> None:
        self._put("write", data, at)

    def _put(self, operation: str, data: bytes, at: int) -> None:
        try:
            self.system.before(operation)
        except (OSError, Crash):
            self._cache(data[: len(data) // 2], at)  # an interrupted write leaves a part behind
            raise
        self._cache(data, at)
        self._sync(operation)
        self.file.write_through(data, at)

    def _cache(self, data: bytes, at: int) -> None:
        self.file.pending.append((at, data))
        self.file.seen[at : at + len(data)] = data

    def _sync(self, operation: str) -> None:
        try:
            self.system.before(f"{operation}.sync")
        except OSError:
            self.file.pending.pop()  # the kernel has tried, and forgets that it is not written
            raise

    def cut(self, size: int) -> None:
        self.system.before("cut")
        del self.file.seen[size:]
        self.file.pending.append(size)
        self._sync("cut")
        for operation in self.file.pending:
            if isinstance(operation, int):
                del self.file.platter[operation:]
            else:
                _put(self.file.platter, *operation)
        self.file.pending.clear()

    def close(self) -> None:
        pass


def _put(platter: bytearray, at: int, data: bytes) -> None:
    platter.extend(bytes(max(at - len(platter), 0)))
    platter[at : at + len(data)] = data


def _around(write: tuple[int, bytes], start: int, stop: int) -> list[tuple[int, bytes]]:
    """Return what is left of a write before `start` and from `stop` on."""
    at, data = write
    before, after = data[: max(start - at, 0)], data[max(stop - at, 0) :]
    pieces = [(at, before), (at + len(data) - len(after), after)]
    return [piece for piece in pieces if piece[1]]


def _settle(file: SimFile, chance: random.Random) -> bytearray:
    """Apply a random part of the unsynced operations to the platter, in a random order."""
    platter = bytearray(file.platter)
    pieces: list[tuple[int, bytes]] = []
    for operation in file.pending:
        if isinstance(operation, int):  # a cut is ordered in the journal of any real file system
            if chance.random() < 0.5:
                pieces = [(at, data) for at, data in pieces if at < operation]
                del platter[operation:]
            continue
        offset, data = operation
        at = 0
        while at < len(data):
            length = SECTOR - (offset + at) % SECTOR
            pieces.append((offset + at, data[at : at + length]))
            at += length
    chance.shuffle(pieces)
    kept = pieces[: chance.randint(0, len(pieces))]
    for offset, data in kept:
        torn = data[: chance.randint(0, len(data))] if chance.random() < 0.2 else data
        _put(platter, offset, torn)
    return platter


def fail_with(number: int) -> OSError:
    return OSError(number, errno.errorcode[number])
