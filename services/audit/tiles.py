"""The log as static files that anybody's tools can read: C2SP tlog-tiles.

https://c2sp.org/tlog-tiles: the hashes of the tree in tiles of 256, the entries in bundles of 256,
and the signed checkpoint that they belong to. Entries are the records as they stand in the log:
pseudonyms and keyed digests, no payloads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from services.audit.checkpoint import CheckpointError, VerifierKey, split_notes, verify
from services.audit.checkpoint_file import NAME as CHECKPOINTS
from services.audit.filesystem import OsFileSystem
from services.audit.merkle import HASH_SIZE, Tree, leaf_hash
from services.audit.verify import read_leaves

WIDTH = 256
_ENTRY_MAX = 0xFFFF  # an entry's length is written in two bytes


class TileError(ValueError):
    """The log can't be published as tiles; the text says why."""


def name(number: int, width: int = WIDTH) -> str:
    """Return a tile's place below its level: groups of three digits, and `.p/W` if it is partial.

    1234067 is "x001/x234/067"; its first 8 hashes alone are "x001/x234/067.p/8".
    """
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.append(f"x{number % 1000:03d}")
    place = "/".join(reversed(groups))
    return place if width == WIDTH else f"{place}.p/{width}"


def hash_tiles(leaf_hashes: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield each tile's path and its hashes, for a tree of these leaves (32 bytes each)."""
    level, hashes = 0, leaf_hashes
    while hashes:
        above = bytearray()
        for number, start in enumerate(range(0, len(hashes), WIDTH * HASH_SIZE)):
            tile = hashes[start : start + WIDTH * HASH_SIZE]
            width = len(tile) // HASH_SIZE
            yield f"tile/{level}/{name(number, width)}", tile
            if width == WIDTH:
                above += Tree(tile).root()
        level, hashes = level + 1, bytes(above)


def bundle(entries: Sequence[bytes]) -> bytes:
    """Return a bundle of entries, each behind its length.

    Raises:
        TileError: an entry is longer than the format can say.
    """
    parts = bytearray()
    for entry in entries:
        if len(entry) > _ENTRY_MAX:
            raise TileError(f"a record has {len(entry)} bytes; tiles hold {_ENTRY_MAX} at most")
        parts += len(entry).to_bytes(2, "big") + entry
    return bytes(parts)


def publish(log: Path, target: Path, keys: Sequence[VerifierKey]) -> int:
    """Write a log's tiles as of its last checkpoint, the checkpoint last; return its size.

    Publishing again into the same folder adds what is new: whole tiles never change.

    Raises:
        TileError: there is no checkpoint by these keys, or the records are not those it signs.
    """
    files = OsFileSystem(log, exclusive=False)
    try:
        note = list(split_notes(files.read_all(CHECKPOINTS).decode()))[-1]
        point = verify(note, keys)
    except (CheckpointError, FileNotFoundError, IndexError) as error:
        raise TileError(f"no checkpoint to publish: {error}") from None
    hashes, waiting, bundles = bytearray(), list[bytes](), 0

    def put_bundle() -> None:
        nonlocal bundles
        _put(target / "tile" / "entries" / name(bundles, len(waiting)), bundle(waiting))
        bundles += 1
        waiting.clear()

    for index, leaf in read_leaves(files):
        if index == point.size:
            break
        hashes += leaf_hash(leaf)
        waiting.append(leaf)
        if len(waiting) == WIDTH:
            put_bundle()
    if waiting:
        put_bundle()
    if Tree(hashes).root() != point.root:
        raise TileError("the records are not those that the checkpoint signs; see `verify`")
    for place, tile in hash_tiles(bytes(hashes)):
        _put(target / place, tile)
    _put(target / "checkpoint", note.encode())
    return point.size


def _put(file: Path, data: bytes) -> None:
    """Write a file that readers never see half of."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data)
    part.replace(file)
