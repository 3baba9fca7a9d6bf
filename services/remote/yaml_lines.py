"""YAML files whose mistakes are reported with file, line and rule."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

M = TypeVar("M", bound=BaseModel)
Mistake: TypeAlias = tuple[tuple[Any, ...], str]
"""A place in a document, as the steps that lead there, and the rule that is broken there."""
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


class CatalogError(ValueError):
    """One or more mistakes in a catalog file: a line `file:line: where: rule` for each."""


def read(
    path: Path,
    kind: type[M],
    environment: Mapping[str, str] | None = None,
    check: Callable[[M], Iterable[Mistake]] | None = None,
) -> M:
    """Read a file into a pydantic model.

    `${NAME}` and `${NAME:-default}` in strings stand for environment variables. `check` finds
    what the model's own rules can't.

    Raises:
        CatalogError: With every mistake of the file.
    """
    variables = os.environ if environment is None else environment
    try:
        document = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise CatalogError(f"{path}:{line}: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise CatalogError(f"{path}:1: {error}") from None
    mistakes: list[str] = []
    plain = _expand(
        document,
        variables,
        (),
        lambda loc, text: mistakes.append(f"{path}:{_line(document, loc)}: {_where(loc)}: {text}"),
    )
    if mistakes:
        raise CatalogError("\n".join(mistakes))
    try:
        found = kind.model_validate(plain)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            rule = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{path}:{_line(document, fault['loc'])}: {_where(fault['loc'])}: {rule}")
        raise CatalogError("\n".join(lines)) from None
    if check is not None:
        rules = [f"{path}:{_line(document, loc)}: {_where(loc)}: {t}" for loc, t in check(found)]
        if rules:
            raise CatalogError("\n".join(rules))
    return found


def _expand(node: Any, variables: Mapping[str, str], loc: tuple[Any, ...], complain: Any) -> Any:
    """Return plain Python values with the variables put in."""
    if isinstance(node, dict):
        return {
            str(key): _expand(value, variables, (*loc, key), complain)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_expand(v, variables, (*loc, i), complain) for i, v in enumerate(node)]
    if not isinstance(node, str):
        return node

    def value(match: re.Match[str]) -> str:
        found = variables.get(match["name"]) or match["default"]
        if found is None:
            complain(loc, f"the environment variable {match['name']} is not set")
            return ""
        return found

    return _VARIABLE.sub(value, str(node))


def _line(document: Any, loc: tuple[Any, ...]) -> int:
    """Return the line of the deepest part of a place that exists in the document, from 1."""
    line = 1
    node = document
    for step in loc:
        try:
            marks = getattr(node, "lc")  # noqa: B009 - ruamel's, unknown to dict
            mark = marks.key(step) if isinstance(node, dict) else marks.item(step)
            node = node[step]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
        line = mark[0] + 1
    return line


def _where(loc: tuple[Any, ...]) -> str:
    parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc]
    return "".join(parts).removeprefix(".") or "file"
