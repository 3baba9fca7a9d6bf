"""What the catalog's tasks expect of local models, and whether a model keeps to it.

Read from `<catalog>/tasks/*.yaml`, of which only candidates on the local path and the tensors
matter here; the router checks those files in full. One that can't be read is logged and left out:
the models that serve must not stop because of a file that is being written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from services.local.spec import ModelSpec, TensorSpec
from twinpath.inference import tensors

log = logging.getLogger(__name__)

Key = tuple[str, str]
# A candidate's word for the version that serves: `twinpath models load` and `rollback` move it.
LIVE = "live"


@dataclass(frozen=True, slots=True)
class Contract:
    """What one task sends and reads."""

    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def divergences(self, spec: ModelSpec) -> Iterator[str]:
        """Yield where a model differs, as sentences."""
        for what, wanted, known in (
            ("input", self.inputs, spec.by_name),
            ("output", self.outputs, spec.out_by_name),
        ):
            for tensor in wanted:
                own = known.get(tensor.name)
                if own is None:
                    yield f"it has no {what} {tensor.name!r}"
                elif own.datatype != tensor.datatype:
                    yield f"its {what} {tensor.name!r} has another data type"
                elif not _shapes_meet(own.shape, tensor.shape):
                    yield (
                        f"its {what} {tensor.name!r} is {list(own.shape)}, "
                        f"the task's {list(tensor.shape)}"
                    )
        sent = {tensor.name for tensor in self.inputs}
        for tensor in spec.inputs:
            if tensor.name not in sent and not tensor.optional:
                yield f"it needs an input {tensor.name!r} that the task does not send"


def _shapes_meet(own: Sequence[int], wanted: Sequence[int]) -> bool:
    """Tell whether some tensor fits both; -1 fits any size."""
    return len(own) == len(wanted) and all(
        -1 in (a, b) or a == b for a, b in zip(own, wanted, strict=True)
    )


class Contracts:
    """The contracts by model and version. Blocks: call it from a thread."""

    def __init__(self, catalog: Path | None) -> None:
        self._folder = None if catalog is None else catalog / "tasks"
        self._state: object = None
        self._known: Mapping[Key, list[Contract]] = {}
        self._budgets: Mapping[str, float] = {}

    def read(self) -> None:
        """Read the files again if one has changed."""
        if self._folder is None:
            return
        files = sorted(self._folder.glob("*.yaml"))
        state = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        if state == self._state:
            return
        self._state = state
        known: dict[Key, list[Contract]] = {}
        budgets: dict[str, float] = {}
        for path in files:
            try:
                document = YAML(typ="safe", pure=True).load(path)
                contract, keys = _contract(document)
                for name, budget in _budgets(document):
                    budgets[name] = min(budget, budgets.get(name, budget))
            except (OSError, YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("task can't be read", extra={"file": path.name, "why": str(error)})
                continue
            for key in keys:
                known.setdefault(key, []).append(contract)
        self._known, self._budgets = known, budgets

    def exact(self) -> list[Key]:
        """Return the models and exact versions that tasks name, by name, then version."""
        return sorted(key for key in self._known if key[1] != LIVE)

    def live(self) -> list[str]:
        """Return the models of which tasks want the version that serves."""
        return sorted(name for name, version in self._known if version == LIVE)

    def budget_ms(self, name: str) -> float:
        """Return the tightest latency budget that a task sets for a model; 0: none does."""
        return self._budgets.get(name, 0.0)

    def pins(self, name: str) -> list[Key]:
        """Return (task, version) for each task that names an exact version of a model."""
        return sorted(
            (contract.task, version)
            for (model, version), contracts in self._known.items()
            for contract in contracts
            if model == name and version != LIVE
        )

    def fault(self, spec: ModelSpec) -> str:
        """Return how a model differs from what a task expects of it; empty: it does not.

        Who wants the version that serves may get any: each has to fit.
        """
        named = self._known.get((spec.name, spec.version), [])
        for contract in (*named, *self._known.get((spec.name, LIVE), [])):
            found = "; ".join(contract.divergences(spec))
            if found:
                return f"task {contract.task} can't use it: {found}"
        return ""


def _contract(document: Any) -> tuple[Contract, list[Key]]:
    keys = [
        (str(candidate["model"]), str(candidate["version"]))
        for candidate in document["candidates"]
        if candidate["path"] == "local"
    ]
    contract = Contract(
        str(document["name"]), _tensors(document["inputs"]), _tensors(document["outputs"])
    )
    return contract, keys


def _budgets(document: Any) -> list[tuple[str, float]]:
    return [
        (str(candidate["model"]), float(candidate["budget_ms"]))
        for candidate in document["candidates"]
        if candidate["path"] == "local" and candidate.get("budget_ms")
    ]


def _tensors(entries: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            entry["name"],
            tensors.datatype_value(entry["datatype"]),  # type: ignore[arg-type]
            tuple(entry["shape"]),
        )
        for entry in entries
    )
