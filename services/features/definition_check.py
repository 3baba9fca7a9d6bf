"""Checks and applies a Feast repo; a mistake in it names file and line.

    python -m services.features.definition_check REPO [apply]

Prints one line of JSON: {"views": {view: {feature: type}}} or {"mistakes": ["file:line: …"]}. A
process of its own, because the repo's modules are imported by their bare names and stay.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from services.chassis.files import FileError
from services.features.definitions import Registry
from services.features.store import RegistryError, feast_quietly
from services.features.validation import read_rules


def check(repo: Path, *, apply: bool) -> dict[str, dict[str, str]]:
    """Import a repo's definitions, check its rules, and apply them if asked to.

    Returns:
        Each view's features and their Feast types.

    Raises:
        FileError: with a line `file:line: mistake` for each.
    """
    os.chdir(repo)
    sys.path.insert(0, str(repo))
    yaml = repo / "feature_store.yaml"
    if not yaml.is_file():
        raise FileError(f"{yaml}:1: there is no such file: is this a Feast repo?")
    from feast.repo_config import load_repo_config  # noqa: PLC0415 - quiet by now
    from feast.repo_operations import _get_repo_contents, apply_total  # noqa: PLC0415

    with feast_quietly():
        try:
            config = load_repo_config(repo, yaml)
        except Exception as error:
            raise FileError(f"{yaml}:1: {_text(error)}") from error
        try:
            found = _get_repo_contents(repo, config.project)
            views = [*found.feature_views, *found.on_demand_feature_views]
            schemas = {
                view.name: {f.name: f.dtype.to_value_type().name for f in view.features}
                for view in views
            }
        except Exception as error:
            raise FileError(f"{_place(error, repo)}: {_text(error)}") from error
        # An inferred schema is known only when it is applied.
        whole = {name: fields for name, fields in schemas.items() if fields}
        if len(whole) == len(schemas):
            read_rules(repo / "validation", Registry("", config.project, {}, schemas=whole))
        if apply:
            try:
                apply_total(config, repo, skip_source_validation=False)
            except Exception as error:
                raise FileError(f"{_place(error, repo)}: {_text(error)}") from error
    return schemas


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text}"


def _place(error: BaseException, repo: Path) -> str:
    """Return file:line of a mistake: where it was raised, or the definition that it names."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 1}"
    inside = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(repo)
    ]
    if inside:
        return f"{inside[-1].filename}:{inside[-1].lineno}"
    text = str(error)
    named = [(name, place) for name, place in _names(repo) if name in text]
    # Feast names the culprit last, after what it was made of; `clicks_v1` says more than `clicks`.
    last = max(named, key=lambda item: (text.rfind(item[0]), len(item[0])), default=None)
    return last[1] if last else f"{repo}:1"


def _names(repo: Path) -> Iterator[tuple[str, str]]:
    """Yield the definitions' names, each with the file:line where it stands."""
    for file in sorted(repo.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                value = keyword.value
                named = keyword.arg == "name" and isinstance(value, ast.Constant)
                if named and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value, f"{file}:{value.lineno}"


def main(repo: str, *how: str) -> int:
    """Check and print; 1 when there are mistakes."""
    real = os.dup(1)
    os.dup2(2, 1)  # what Feast prints is no part of the answer
    try:
        answer: dict[str, object] = {"views": check(Path(repo).resolve(), apply="apply" in how)}
    except (FileError, RegistryError) as error:
        answer = {"mistakes": str(error).splitlines()}
    os.write(real, json.dumps(answer).encode() + b"\n")
    return int("mistakes" in answer)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
