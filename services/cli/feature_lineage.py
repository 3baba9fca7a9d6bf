"""A view's way from its sources to the models that it feeds, from the registry and the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from services.chassis.files import FileError
from services.features.definitions import Origin, Registry
from services.features.store import FeastRepo, RegistryError
from services.features.validation import RuledRepo


class LineageError(Exception):
    """The view is unknown, or the registry or the catalog can't be read."""


def trace(view: str, repo: Path, catalog: Path) -> Tree:
    """Return the way as a tree: where the view comes from, and what it feeds.

    Raises:
        LineageError: see there.
    """
    try:
        registry = RuledRepo(FeastRepo(repo, settle_s=0.0), repo / "validation").load()
    except (RegistryError, FileError) as error:
        raise LineageError(str(error)) from error
    assert registry is not None
    if view not in registry.origins:
        known = ", ".join(sorted(registry.origins))
        raise LineageError(f"there is no view {view!r} in {repo}; there are: {known}")
    root = Tree(Text.assemble((view, "bold"), (f"  registry {registry.version[:12]}", "dim")))
    _add_sources(root.add("comes from"), registry.origins, view)
    feeds = root.add("feeds")
    tasks = list(_tasks(catalog))
    for service in sorted(registry.services):
        used = [version for name, version in registry.services[service].versions if name == view]
        if used or _derived(registry, service, view):
            _add_service(feeds, service, tasks)
    return root


def _add_sources(tree: Tree, origins: Mapping[str, Origin], view: str) -> None:
    origin = origins[view]
    branch = tree.add(Text.assemble((view, "bold"), f"  version {origin.version_hash[:12]}"))
    for source in origin.sources:
        branch.add(source)
    for name in origin.inputs:
        _add_sources(branch, origins, name)


def _derived(registry: Registry, service: str, view: str) -> bool:
    """Tell whether a service has an on-demand view that is made from this one."""
    names = [name for name, _ in registry.services[service].versions]
    return any(name in registry.origins and view in registry.origins[name].inputs for name in names)


def _add_service(tree: Tree, service: str, tasks: list[dict[str, Any]]) -> None:
    branch = tree.add(Text.assemble("feature service ", (service, "bold")))
    for task in tasks:
        if task.get("feature_service") != service:
            continue
        leaf = branch.add(Text.assemble("task ", (str(task.get("name")), "bold")))
        for candidate in task.get("candidates") or []:
            path, model = candidate.get("path"), candidate.get("model")
            leaf.add(f"{path}: model {model} version {candidate.get('version')}")


def _tasks(catalog: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((catalog / "tasks").glob("*.yaml")):
        try:
            loaded = YAML(typ="safe").load(file)
        except (OSError, YAMLError) as error:
            raise LineageError(f"{file}: {error}") from error
        if isinstance(loaded, dict):
            yield loaded
