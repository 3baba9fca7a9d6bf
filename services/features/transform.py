"""Runs on-demand views over columns.

A view's function is the data scientist's code: it may fail on rows that have no features. Then
each row is computed alone, so that one row's failure stays that row's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.features.definitions import OnDemandView


@dataclass(slots=True)
class Computed:
    """The outputs of a view as columns, in the order of its definition.

    `missing` are outputs that the function did not give; `failed` rows and what they raised.
    """

    columns: list[list[Any]]
    missing: set[int] = field(default_factory=set)
    failed: dict[int, Exception] = field(default_factory=dict)


def run(view: OnDemandView, inputs: Mapping[str, Sequence[Any]], rows: int) -> Computed:
    """Compute a view's outputs for all rows."""
    if not view.singleton:
        try:
            return _columns(view, view.compute({k: list(v) for k, v in inputs.items()}), rows)
        except Exception as error:  # noqa: BLE001 - somebody else's code
            if rows == 1:
                return Computed([[None] for _ in view.outputs], failed={0: error})
    result = Computed([[None] * rows for _ in view.outputs])
    absent: set[int] | None = None
    for row in range(rows):
        try:
            one = _row(view, inputs, row)
        except Exception as error:  # noqa: BLE001 - somebody else's code
            result.failed[row] = error
            continue
        for number, column in enumerate(result.columns):
            column[row] = one.columns[number][0]
        absent = one.missing if absent is None else absent & one.missing
    result.missing = absent or set()
    return result


def _row(view: OnDemandView, inputs: Mapping[str, Sequence[Any]], row: int) -> Computed:
    if not view.singleton:
        return _columns(view, view.compute({k: [v[row]] for k, v in inputs.items()}), 1)
    given = view.compute({k: v[row] for k, v in inputs.items()})
    columns = {
        f.name: [_singleton_value(given[f.name], f.value_type)]
        for f in view.outputs
        if f.name in given
    }
    return _columns(view, columns, 1)


def _singleton_value(value: Any, value_type: str) -> Any:
    """Return a singleton's output: Feast takes a list for a column, unless lists are its type."""
    if isinstance(value, list) and len(value) == 1:
        nested = isinstance(value[0], list)
        if nested or not value_type.endswith(("_LIST", "_SET")):
            return value[0]
    return value


def _columns(view: OnDemandView, given: Mapping[str, Any], rows: int) -> Computed:
    columns: list[list[Any]] = []
    missing: set[int] = set()
    for number, output in enumerate(view.outputs):
        if output.name not in given:
            missing.add(number)
            columns.append([None] * rows)
            continue
        values = given[output.name]
        # Feast, too, takes anything but a list for the value of a single row.
        column = values if isinstance(values, list) else _listed(values)
        if len(column) != rows:
            raise ValueError(f"{output.name} has {len(column)} values for {rows} rows")
        columns.append(column)
    return Computed(columns, missing)


def _listed(values: Any) -> list[Any]:
    return list(values) if getattr(values, "ndim", 0) == 1 else [values]
