"""A file system that loses what wasn't synced, in the worst order, and that can fail on demand.

What a file holds is tracked twice: as programs see it, and as it stands on the platter. Unsynced
writes reach the platter at a crash in any order, in part, torn at 512-byte sectors or mid-sector,
or not at all. Unsynced names may vanish.
"""

# ruff: noqa: D102, D103
from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence

SECTOR = 512


class Crash(BaseException):
    """The power went. Not an Exception: no code under test may catch it."""


class SimFile:
    def __init__(self) -> None:
        self.seen = bytearray()
        self.platter = bytearray()
        self.pending: list[tuple[int, bytes] | int] = []  # a write at an offset, or a cut to a size


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

    def append_to(self, name: str) -> SimAppender:
        self.before("open")
        return SimAppender(self, self.files.setdefault(name, SimFile()))

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


class SimAppender:
    def __init__(self, system: SimFileSystem, file: SimFile) -> None:
        self.system, self.file = system, file

    def write(self, buffers: Sequence[bytes]) -> None:
        data = b"".join(buffers)
        try:
            self.system.before("write")
        except (OSError, Crash):
            self._put(data[: len(data) // 2])  # an interrupted write leaves a part behind
            raise
        self._put(data)

    def _put(self, data: bytes) -> None:
        self.file.pending.append((len(self.file.seen), data))
        self.file.seen += data

    def datasync(self) -> None:
        self.system.before("datasync")
        self.file.platter = bytearray(self.file.seen)
        self.file.pending.clear()

    def truncate(self, size: int) -> None:
        self.system.before("truncate")
        del self.file.seen[size:]
        self.file.pending.append(size)

    def close(self) -> None:
        pass


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
        if len(platter) < offset:
            platter += bytes(offset - len(platter))
        platter[offset : offset + len(torn)] = torn
    return platter


def fail_with(number: int) -> OSError:
    return OSError(number, errno.errorcode[number])
