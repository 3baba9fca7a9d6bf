"""Files of settings: YAML into a typed model, each mistake with file, line and rule; keys."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

M = TypeVar("M", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::-([^}]*))?\}")


KEY_BYTES = 32


def read_key(path: Path) -> bytes:
    """Read a secret key: 32 bytes, or 64 hex digits.

    Raises:
        ValueError: the file holds something else.
    """
    raw = path.read_bytes()
    if len(raw) == KEY_BYTES:
        return raw
    try:
        key = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path}: holds neither {KEY_BYTES} bytes nor {2 * KEY_BYTES} hex digits")
    return key


class FileError(ValueError):
    """A file has mistakes; the text has a line `file:line: rule` for each."""


def line_of(data: Any, location: Iterable[Any]) -> int:
    """Return the line, from 1, at which a place of a loaded document stands."""
    line = 1
    for key in location:
        marks = getattr(data, "lc", None)
        if marks is None:
            break
        try:
            line = (marks.key(key) if isinstance(data, dict) else marks.item(key))[0] + 1
            data = data[key]
        except (KeyError, IndexError, TypeError):
            break
    return line


def load_yaml(path: Path) -> Any:
    """Load a YAML file, lines kept; `${NAME}` and `${NAME:-default}` are from the environment.

    Raises:
        FileError: it can't be read or is no YAML, or a variable without default is not set.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}:1: can't be read: {error}") from None
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.split(" #", 1)[0] if not line.lstrip().startswith("#") else ""
        for match in _VARIABLE.finditer(bare):
            if match[2] is None and match[1] not in os.environ:
                raise FileError(f"{path}:{number}: the variable {match[1]} is not set")
        lines.append(_VARIABLE.sub(lambda m: os.environ.get(m[1], m[2] or ""), line))
    try:
        return YAML(typ="rt").load("\n".join(lines))
    except MarkedYAMLError as error:
        at = error.problem_mark.line + 1 if error.problem_mark else 1
        raise FileError(f"{path}:{at}: {error.problem}") from None
    except YAMLError as error:
        raise FileError(f"{path}:1: {error}") from None


def read_model(path: Path, kind: type[M]) -> M:
    """Read a YAML file into a typed model.

    Raises:
        FileError: with one line for each mistake.
    """
    data = load_yaml(path)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        mistakes = []
        for fault in error.errors():
            where = ".".join(str(part) for part in fault["loc"])
            line = line_of(data, fault["loc"])
            mistakes.append(f"{path}:{line}: {where or 'file'}: {fault['msg']}")
        raise FileError("\n".join(mistakes)) from None


def digest_of(paths: Iterable[Path], root: Path) -> str:
    """Return a version for a set of files: 16 hex digits over their names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        name = str(path.relative_to(root)).encode()
        body = path.read_bytes()
        total.update(len(name).to_bytes(4, "little") + name)
        total.update(len(body).to_bytes(8, "little") + body)
    return total.hexdigest()[:16]
