"""The digests of the models' artifacts, from the files and the cards beside them.

`<models>/<name>/<version>/` holds what Triton loads and, where our training wrote it, `card.json`.
A card states its artifact's digest; a file that differs from it is not what was approved, and the
model is refused. Where keys are given, a card must be signed by one of them too (signature.py).
Triton may hold in memory what it loaded before a file changed: the digest is that of the files,
looked at whenever they change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.local import signature

CARD = "card.json"
_PREFIX = "sha256:"
_NOT_ARTIFACTS = ("__pycache__", ".")


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact's SHA-256, empty where it is not known; `fault` says why it must not serve."""

    digest: bytes = b""
    fault: str = ""


_UNKNOWN = Artifact()


class Artifacts:
    """Looks at a model repository on disk. Blocks: call it from a thread."""

    def __init__(self, folder: Path | None, keys: Sequence[Ed25519PublicKey] = ()) -> None:
        self._folder = folder
        self._keys = tuple(keys)  # whose signature a card needs; none: no signatures are asked for
        self._seen: dict[Path, tuple[object, Artifact]] = {}

    def look(self, name: str, version: str) -> Artifact:
        """Return what is known about a version's artifact; hashes only what has changed."""
        if self._folder is None:
            return _UNKNOWN
        folder = self._folder / name / version
        try:
            files = _files(folder)
            state = [(path, *_stamp(path)) for path in files]
            known = self._seen.get(folder)
            if known is None or known[0] != state:
                known = (state, _examine(folder, files, self._keys))
                self._seen[folder] = known
        except OSError as error:
            return Artifact(fault=f"its files can't be read: {error.strerror}")
        return known[1]


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(p.startswith(_NOT_ARTIFACTS) for p in path.relative_to(folder).parts)
    )


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def digest_of(folder: Path, files: list[Path]) -> bytes:
    """Return the digest of an artifact.

    One file: its SHA-256. Several: the SHA-256 of a line for each, in the order of their names:
    the file's own digest in hex, two spaces, its path below the folder (as `sha256sum` prints).
    """
    if not files:
        return b""
    if len(files) == 1:
        return _hash(files[0])
    lines = (f"{_hash(f).hex()}  {f.relative_to(folder).as_posix()}\n" for f in files)
    return hashlib.sha256("".join(lines).encode()).digest()


def _examine(folder: Path, files: list[Path], keys: Sequence[Ed25519PublicKey]) -> Artifact:
    card = folder / CARD
    seal = folder / f"{CARD}{signature.SUFFIX}"
    if card not in files:
        fault = f"it has no {CARD}, so nobody vouches for it" if keys else ""
        return Artifact(digest_of(folder, files), fault)
    content = card.read_bytes()
    if keys:
        if seal not in files:
            return Artifact(fault=f"its {CARD} is not signed")
        if not signature.verified(
            keys, content, seal.read_text(encoding="ascii", errors="replace")
        ):
            return Artifact(fault=f"its {CARD} is not signed by a key that is trusted here")
    try:
        read = json.loads(content)
        stated = read["artifact"]
        names = read.get("name", folder.parent.name), str(read.get("version", folder.name))
        file, text = folder / stated["file"], stated["digest"]
        digest = bytes.fromhex(text.removeprefix(_PREFIX))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Artifact(fault=f"its {CARD} can't be read")
    if names != (folder.parent.name, folder.name):  # signed, but for something else
        return Artifact(fault=f"its {CARD} is that of {names[0]} version {names[1]}")
    if file not in files:
        return Artifact(fault=f"its {CARD} names a file that is not there")
    if _hash(file) != digest:
        return Artifact(fault=f"its artifact is not the one that its {CARD} states")
    return Artifact(digest)
