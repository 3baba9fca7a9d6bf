"""The files of one version of a model, as its card lists them and a signature over the card covers.

In the manner of OpenSSF's model-signing: not a chosen file but all that Triton could run or read.
That is everything in `<model>/<version>/` but the card itself, and everything beside the versions
(labels, an execution environment, another stub): those paths begin with `../`. `config.pbtxt` says
which of the files is run, and how; it is listed by the digest of its tokens, so that comments and
spaces may change. A link to a folder can't be read as a file: nobody can vouch for what it shows.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.local import signature

FORMAT = 2
CARD = "card.json"
SEAL = f"{CARD}{signature.SUFFIX}"
CONFIG = "config.pbtxt"
_PREFIX = "sha256:"
_CACHE = "__pycache__"
_LEFTOVERS = (_CACHE, ".")  # passed over where nobody vouches for anything
# Strings, comments, spaces, punctuation, words: every character of a text is in one of them.
_TOKEN = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\#[^\n]*|\s+|[^\s"'\#\w]|\w+|["'])"""
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What lies in a version, or what a card says does.

    Attributes:
        files: SHA-256 and size in bytes of each file, by its path from the version's folder.
        config: The digest of `config.pbtxt`'s tokens; empty: there is none.
    """

    files: Mapping[str, tuple[bytes, int]]
    config: bytes = b""

    @property
    def digest(self) -> bytes:
        """The artifact's digest.

        One file: its SHA-256. Several: the SHA-256 of a line for each, in the order of their
        paths: the file's own digest in hex, two spaces, its path (as `sha256sum` prints it in the
        version's folder). None: empty.
        """
        if len(self.files) < 2:
            return next((digest for digest, _ in self.files.values()), b"")
        lines = (f"{self.files[path][0].hex()}  {path}\n" for path in sorted(self.files))
        return hashlib.sha256("".join(lines).encode()).digest()

    def misfit(self, stated: Manifest) -> str:
        """Return where these files are not those of a card, as a clause; empty: they are."""
        if extra := sorted(self.files.keys() - stated.files.keys()):
            return f"it holds a file that its {CARD} does not list: {extra[0]}"
        if missing := sorted(stated.files.keys() - self.files.keys()):
            return f"its {CARD} lists a file that is not there: {missing[0]}"
        for path, found in sorted(self.files.items()):
            if found != stated.files[path]:
                return f"its {path} is not the one that its {CARD} states"
        if self.config != stated.config:
            return f"its {CONFIG} is not the one that its {CARD} states"
        return ""

    def as_card(self) -> dict[str, Any]:
        """Return the `artifact` of a card."""
        return {
            "digest": _text(self.digest) if self.files else None,
            "files": [
                {"path": path, "digest": _text(digest), "bytes": size}
                for path, (digest, size) in sorted(self.files.items())
            ],
            "config": _text(self.config) if self.config else None,
        }


def of_card(artifact: Mapping[str, Any]) -> Manifest:
    """Read the `artifact` of a card.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It is none.
    """
    files = {
        str(file["path"]): (_bytes(file["digest"]), int(file["bytes"]))
        for file in artifact["files"]
    }
    if len(files) != len(artifact["files"]):
        raise ValueError("a path stands there twice")
    return Manifest(files, _bytes(artifact["config"]) if artifact["config"] else b"")


def of_folder(folder: Path, *, strict: bool = True) -> Manifest:
    """Read a version's files. Blocks.

    Args:
        folder: `<model>/<version>`.
        strict: Take everything; else without hidden files, links to folders and Python's caches.

    Raises:
        OSError: One can't be read.
    """
    files = {
        path: (_hash(file), file.stat().st_size)
        for path, file in _entries(folder)
        if strict or not (_is_leftover(path) or file.is_dir())
    }
    config = folder.parent / CONFIG
    text = config.read_text(encoding="utf-8", errors="surrogateescape") if config.exists() else None
    return Manifest(files, b"" if text is None else config_digest(text))


def config_digest(text: str) -> bytes:
    """Return the SHA-256 of a configuration's tokens, one a line: no comments, no spaces.

    Which versions Triton loads and how long a batch waits is not in the file: explicit control
    sends that along (`with_versions`).
    """
    tokens = (token for token in _TOKEN.findall(text) if not (token.isspace() or token[0] == "#"))
    return hashlib.sha256("\n".join(tokens).encode("utf-8", "surrogateescape")).digest()


def stamps(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """Return what changes when a file of a version does, or comes, or goes; cheap. Blocks.

    Raises:
        OSError: One can't be looked at.
    """
    found = []
    for path in sorted([*_inside(folder), *_beside(folder)]):
        stat = path.stat()
        # Of the times the last one is the one that nobody can set.
        found.append((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return found


def write_card(
    folder: Path, card: Mapping[str, Any], key: Ed25519PrivateKey | None
) -> dict[str, Any]:
    """Write a version's `card.json` over the files that lie there, and with a key its signature.

    Python would run what lies in `__pycache__` in the place of a model's code, and write there what
    no card lists; Triton's stub reads no environment variable that forbids it. An empty file of
    that name does.

    Returns:
        The card, with its `artifact`.
    """
    for code in {file.parent for _, file in _entries(folder) if file.suffix == ".py"}:
        cache = code / _CACHE
        if cache.is_dir():
            shutil.rmtree(cache)
        cache.touch()
    written = {**card, "card_format": FORMAT, "artifact": of_folder(folder).as_card()}
    text = json.dumps(written, indent=2, allow_nan=False) + "\n"
    (folder / CARD).write_text(text, encoding="utf-8")
    seal = folder / SEAL
    if key is None:
        seal.unlink(missing_ok=True)
    else:
        seal.write_text(signature.sign(key, text.encode()), encoding="ascii")
    return written


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield a version's files with their paths, without card, seal and configuration."""
    for file in _inside(folder):
        path = file.relative_to(folder).as_posix()
        if path not in (CARD, SEAL):
            yield path, file
    for file in _beside(folder):
        path = file.relative_to(folder.parent).as_posix()
        if path != CONFIG:
            yield f"../{path}", file


def _inside(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder, and in those in it; a link to one as if it were a file."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield from _inside(path)
        else:
            yield path


def _beside(folder: Path) -> Iterator[Path]:
    """Yield what lies in the model's folder, but not in a version's."""
    for path in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if not path.is_dir():
            yield path
        elif not path.name.isdigit():
            yield from [path] if path.is_symlink() else _inside(path)


def _is_leftover(path: str) -> bool:
    return any(part.startswith(_LEFTOVERS) for part in path.removeprefix("../").split("/"))


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _text(digest: bytes) -> str:
    return f"{_PREFIX}{digest.hex()}"


def _bytes(text: str) -> bytes:
    if not text.startswith(_PREFIX):
        raise ValueError("no SHA-256")
    return bytes.fromhex(text.removeprefix(_PREFIX))
