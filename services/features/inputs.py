"""Checks a request's columns against the feature service, and gives Python values.

What is wrong with a whole column is the call's fault and named at once with all other faults;
what is wrong with one value of a column of mixed kinds is that row's fault alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Violation = tuple[str, str]

_SCALARS = {
    "BOOL": ("bools",),
    "INT32": ("int64s",),
    "INT64": ("int64s",),
    "DOUBLE": ("doubles", "floats", "int64s"),
    "FLOAT": ("floats", "doubles", "int64s"),
    "STRING": ("strings",),
    "BYTES": ("byteses",),
    "PDF_BYTES": ("byteses",),
    "IMAGE_BYTES": ("byteses",),
    "UNIX_TIMESTAMP": ("unix_times_us",),
    "JSON": ("strings",),
    "UUID": ("strings",),
    "TIME_UUID": ("strings",),
    "DECIMAL": ("strings",),
}
_KINDS = {
    "bool_value": "bools",
    "int64_value": "int64s",
    "double_value": "doubles",
    "string_value": "strings",
    "bytes_value": "byteses",
    "unix_time_us": "unix_times_us",
}


@dataclass(slots=True)
class Inputs:
    """Join keys and request fields by name, as columns of Python values.

    Times are whole seconds, as Feast stores them. `faults` are rows that can't be read, with
    what is wrong with them; their values are placeholders.
    """

    keys: dict[str, Sequence[Any]] = field(default_factory=dict)
    requests: dict[str, Sequence[Any]] = field(default_factory=dict)
    faults: dict[int, list[Violation]] = field(default_factory=dict)


def read_columns(
    types: Mapping[str, str],
    columns: Sequence[Any],
    rows: int,
    place: str,
    *,
    nullable: bool,
    faults: dict[int, list[Violation]],
) -> tuple[dict[str, Sequence[Any]], list[Violation]]:
    """Return the columns' values by name, and all that is wrong.

    Args:
        types: The columns that there must be, and their value types; there must be no others.
        columns: `Column` messages.
        rows: How many values each must have.
        place: The request's field, such as "join_keys".
        nullable: Whether a value may be null.
        faults: Takes what is wrong with single rows.
    """
    found: dict[str, Sequence[Any]] = {}
    wrong: list[Violation] = []
    for number, column in enumerate(columns):
        where = f"{place}[{number}]"
        value_type = types.get(column.name)
        if value_type is None:
            known = ", ".join(sorted(types)) or "none"
            wrong.append((f"{where}.name", f"unknown name {column.name!r}; known: {known}"))
            continue
        values, why = _column(column, value_type, rows, where, nullable=nullable, faults=faults)
        if why:
            wrong.append((where, f"{column.name}: {why}"))
        found[column.name] = values
    if len(found) < len(types):
        wrong += [
            (place, f"{name} ({value_type}) is missing")
            for name, value_type in types.items()
            if name not in found
        ]
    return found, wrong


def _column(
    column: Any,
    value_type: str,
    rows: int,
    where: str,
    *,
    nullable: bool,
    faults: dict[int, list[Violation]],
) -> tuple[Sequence[Any], str]:
    array = column.WhichOneof("values")
    if array is None:
        return [None] * rows, "" if nullable else "has no values"
    values = getattr(column, array).values
    if len(values) != rows:
        return [], f"has {len(values)} values for {rows} rows"
    if array == "mixed":
        return _mixed(values, value_type, f"{where}.mixed.values", column.name, nullable, faults)
    accepted = _SCALARS.get(value_type)
    if accepted is None:
        return [], f"is {array}; {value_type} needs mixed"
    if array not in accepted:
        return [], f"is {array}; {value_type} needs {' or '.join(accepted)}"
    if value_type == "INT32" and not nullable:
        for row, value in enumerate(values):
            if not -(2**31) <= value < 2**31:
                text = f"{column.name}: out of the range of INT32"
                faults.setdefault(row, []).append((f"{where}.int64s.values[{row}]", text))
    return _converted(array, value_type, values), ""


def _converted(array: str, value_type: str, values: Any) -> Sequence[Any]:
    if array == "unix_times_us":
        return [_seconds(value) for value in values]
    if array == "int64s" and value_type in ("DOUBLE", "FLOAT"):
        return [float(value) for value in values]
    # Feast takes NaN for null.
    if array in ("doubles", "floats"):
        return [None if value != value else value for value in values]  # noqa: PLR0124
    return list(values)


def _seconds(micros: int) -> int:
    """Return whole seconds, cut towards zero as Feast cuts them."""
    return micros // 1_000_000 if micros >= 0 else -(-micros // 1_000_000)


def _mixed(
    values: Any,
    value_type: str,
    where: str,
    name: str,
    nullable: bool,
    faults: dict[int, list[Violation]],
) -> tuple[Sequence[Any], str]:
    found: list[Any] = []
    for row, value in enumerate(values):
        try:
            item = _checked(_value(value, value_type), value_type, nullable)
        except ValueError as error:
            faults.setdefault(row, []).append((f"{where}[{row}]", f"{name}: {error}"))
            item = None
        found.append(item)
    return found, ""


def _checked(item: Any, value_type: str, nullable: bool) -> Any:
    if item is None and not nullable:
        raise ValueError("is null")
    if value_type == "INT32" and item is not None and not -(2**31) <= item < 2**31:
        raise ValueError("out of the range of INT32")
    return item


def _value(value: Any, value_type: str) -> Any:
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "list_value":
        inner = value_type.removesuffix("_LIST").removesuffix("_SET")
        if inner == value_type and value_type not in ("VALUE_LIST", "VALUE_SET"):
            raise ValueError(f"is a list; {value_type} is none")
        return [_value(item, inner) for item in value.list_value.values]
    accepted = _SCALARS.get(value_type)
    array = _KINDS[kind]
    if accepted is None or array not in accepted:
        raise ValueError(f"is {kind}; needs {value_type}")
    return _converted(array, value_type, [getattr(value, kind)])[0]
