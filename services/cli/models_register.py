"""Adds a local model to the catalog as a candidate, beside the one that it was made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError


class RegisterError(Exception):
    """The catalog could not be changed; the text says why. Nothing was written."""


class NoTaskError(RegisterError):
    """No task has the parent as a local candidate, so there is nothing to add to."""


def register(catalog: Path, parent: str, name: str, note: str) -> list[str]:
    """Add `name` to each task that `parent` is a local candidate of, right after it.

    The version is `live`: what `twinpath models load` lets serve. All else of a file stays, its
    comments too, and a file changes as a whole. The routers read it again by themselves.

    Args:
        catalog: The catalog's folder.
        parent: The model that it was made from.
        name: The new model, and its candidate's id.
        note: Its lineage in a few words, as a comment beside it.

    Returns:
        The tasks that it is a candidate of now.

    Raises:
        NoTaskError: No task names the parent.
        RegisterError: A file can't be read or written.
    """
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    tasks = []
    for path in sorted((catalog / "tasks").glob("*.yaml")):
        try:
            document = yaml.load(path)
            changed = _add(document["candidates"], parent, name, note)
            if changed is None:
                continue
            tasks.append(str(document["name"]))
            if changed:
                _write(yaml, document, path)
        except (OSError, YAMLError, KeyError, TypeError) as error:
            raise RegisterError(f"{path}: {error}") from error
    if not tasks:
        raise NoTaskError(f"no task of {catalog} has {parent} as a local candidate")
    return tasks


def _add(candidates: Any, parent: str, name: str, note: str) -> bool | None:
    """Add the candidate; False: it is there already; None: the parent is not."""
    place = None
    for index, candidate in enumerate(candidates):
        if candidate["path"] == "local" and candidate["model"] == name:
            return False
        if candidate["path"] == "local" and candidate["model"] == parent:
            place = index
    if place is None:
        return None
    given = {**candidates[place], "id": name, "model": name, "version": "live"}
    entry = CommentedMap(given)
    entry.fa.set_flow_style()
    candidates.insert(place + 1, entry)
    candidates.yaml_add_eol_comment(note, place + 1)
    return True


def _write(yaml: YAML, document: Any, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as out:
            yaml.dump(document, out)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
