"""Entries of a Redis stream as rows of a push source.

An entry has either the fields `source` and `row`, a JSON object of one value for each column, or
the field `push`, a serialized PushRequest with as many rows as it likes. In JSON a time is
RFC 3339 text with an offset, or microseconds since 1970 UTC; bytes are base64; null is null.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from services.features.definitions import PushSource
from twinpath.common.v1 import value_pb2
from twinpath.features.v1 import features_pb2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BYTES = ("BYTES", "PDF_BYTES", "IMAGE_BYTES")


class EntryError(ValueError):
    """An entry that will never be a row; the text names fields, and holds no value."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: `row` or `columns`, the other is None."""

    id: bytes
    source: str
    row: Mapping[str, Any] | None
    columns: Sequence[value_pb2.Column] | None


def read_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """Return an entry.

    Raises:
        EntryError: when it has neither form.
    """
    if b"push" in fields:
        try:
            request = features_pb2.PushRequest.FromString(fields[b"push"])
        except Exception:  # noqa: BLE001 - protobuf's error depends on its implementation
            raise EntryError("push: is no PushRequest") from None
        if not request.columns:
            raise EntryError("push: has no columns")
        return Entry(entry_id, request.push_source, None, request.columns)
    missing = [name.decode() for name in (b"source", b"row") if name not in fields]
    if missing:
        raise EntryError(f"{' and '.join(missing)}: missing; an entry is source and row, or push")
    try:
        source = fields[b"source"].decode()
        row = json.loads(fields[b"row"])
    except ValueError:
        raise EntryError("row: is no JSON") from None
    if not isinstance(row, dict) or not row:
        raise EntryError("row: is no JSON object with columns")
    return Entry(entry_id, source, row, None)


def column_types(source: PushSource) -> dict[str, str]:
    """Return the Feast type of each column that a push source takes."""
    types = {source.timestamp_column: "UNIX_TIMESTAMP"}
    if source.created_column:
        types[source.created_column] = "UNIX_TIMESTAMP"
    for view in source.views:
        types |= {part.column: part.value_type for part in view.key if part.column}
        types |= {column: field.value_type for column, field in view.features}
    return types


def row_columns(
    rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]
) -> list[value_pb2.Column]:
    """Return JSON rows, all with the same names, as columns.

    Raises:
        EntryError: naming a column whose value can't be of its type.
    """
    columns = []
    for name in rows[0]:
        value_type = types.get(name, "")  # an unknown name is the pusher's to refuse
        column = value_pb2.Column(name=name)
        column.mixed.SetInParent()
        for row in rows:
            try:
                _set(column.mixed.values.add(), row[name], value_type)
            except (ValueError, TypeError, OverflowError):
                raise EntryError(f"row.{name}: is no {value_type or 'value'}") from None
        columns.append(column)
    return columns


def _set(entry: Any, value: Any, value_type: str) -> None:
    if value is None:
        return
    if isinstance(value, list):
        entry.list_value.SetInParent()
        inner = value_type.removesuffix("_LIST").removesuffix("_SET")
        for item in value:
            _set(entry.list_value.values.add(), item, inner)
    elif value_type == "UNIX_TIMESTAMP":
        entry.unix_time_us = _micros(value)
    elif value_type in _BYTES:
        entry.bytes_value = base64.b64decode(value, validate=True)
    elif isinstance(value, bool):
        entry.bool_value = value
    elif isinstance(value, int):
        entry.int64_value = value
    elif isinstance(value, float):
        entry.double_value = value
    elif isinstance(value, str):
        entry.string_value = value
    else:
        raise TypeError


def _micros(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("a time without an offset")
    return (moment - _EPOCH) // timedelta(microseconds=1)
