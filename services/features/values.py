"""Feast's stored values to the contract's columns, and back.

A stored value is one field of a protobuf message: a tag, then the payload. A column of one kind
is the same payloads behind one another. So most columns are copied, not decoded; what does not
look as expected is parsed value by value, and comes out as what it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

import numpy as np

from services.features import wire
from services.features.definitions import Raw
from twinpath.common.v1 import value_pb2

Parse = Callable[[bytes], tuple[str, Any]]
Nulls = list[bool]

_NAT = -(2**63)
_MAX_S = (2**63 - 1) // 1_000_000


@dataclass(frozen=True, slots=True)
class Fixed:
    """A kind of numbers whose stored values all have the same size, tag included."""

    tag: int
    size: int
    array: str
    letter: str

    def strip(self, cells: Sequence[bytes]) -> bytes | None:
        """Return the payloads of stored values; None when one is not of this kind."""
        if set(map(len, cells)) != {self.size}:
            return None
        joined = b"".join(cells)
        if joined[:: self.size] != bytes([self.tag]) * len(cells):
            return None
        if len(cells) == 1:
            return joined[1:]
        table = np.frombuffer(joined, dtype=np.uint8).reshape(len(cells), self.size)
        return table[:, 1:].tobytes()

    def unpack(self, payload: bytes) -> Sequence[float]:
        """Return the numbers of payloads."""
        count = len(payload) // (self.size - 1)
        return struct.unpack(f"<{count}{self.letter}", payload)

    @property
    def zero(self) -> bytes:
        """A stored zero."""
        return bytes([self.tag]) + bytes(self.size - 1)

    @property
    def numpy(self) -> str:
        """Numpy's name of a payload."""
        return f"<f{self.size - 1}"


FIXED = {"DOUBLE": Fixed(0x29, 9, "doubles", "d"), "FLOAT": Fixed(0x35, 5, "floats", "f")}

# Kinds whose stored null is always empty.
NEVER_NULL = frozenset({"DOUBLE", "FLOAT", "INT32", "INT64", "BOOL", "STRING", "BYTES"})

# value type: (tag byte, array)
_VARINT = {"INT32": (0x18, "int64s"), "INT64": (0x20, "int64s"), "BOOL": (0x38, "bools")}
_SIZED = {"BYTES": (0x0A, "byteses"), "STRING": (0x12, "strings")}

# Which array of a column holds the values of a kind, and each value's place in a Value.
_ARRAYS = {
    "bool_val": "bools",
    "int32_val": "int64s",
    "int64_val": "int64s",
    "double_val": "doubles",
    "float_val": "floats",
    "string_val": "strings",
    "bytes_val": "byteses",
    "unix_timestamp_val": "unix_times_us",
    "json_val": "strings",
    "uuid_val": "strings",
    "time_uuid_val": "strings",
    "decimal_val": "strings",
}
_KINDS = {
    "bools": "bool_value",
    "int64s": "int64_value",
    "doubles": "double_value",
    "floats": "double_value",
    "strings": "string_value",
    "byteses": "bytes_value",
    "unix_times_us": "unix_time_us",
}
_ZERO: dict[str, Any] = {
    "bools": False,
    "int64s": 0,
    "doubles": 0.0,
    "floats": 0.0,
    "strings": "",
    "byteses": b"",
    "unix_times_us": 0,
}
_LIST_ENTRIES = {
    "bool": "bool_value",
    "int32": "int64_value",
    "int64": "int64_value",
    "double": "double_value",
    "float": "double_value",
    "string": "string_value",
    "bytes": "bytes_value",
    "json": "string_value",
    "uuid": "string_value",
    "time_uuid": "string_value",
    "decimal": "string_value",
}
_MAP_KEYS = {"int32_key": "int64_value", "int64_key": "int64_value", "bool_key": "bool_value"}
_MAP_KEYS |= {"float_key": "double_value", "double_key": "double_value"}
_MAP_KEYS |= {"bytes_key": "bytes_value"}


def encode(value_type: str, raw: Sequence[Raw], parse: Parse) -> tuple[bytes, dict[int, str]]:
    """Return the array of a `Column` that holds stored values; rows without one get zero.

    Args:
        value_type: What the registry says about the values; they need not obey.
        raw: The stored values.
        parse: See `store.parse`.

    Returns:
        The array, serialized, empty when there is no value; and the rows whose value can't be
        read or represented, and why. They get zero.
    """
    if not any(raw):
        return b"", {}
    found: bytes | None = None
    if value_type in FIXED:
        found = _fixed(FIXED[value_type], raw)
    elif value_type in _VARINT:
        found = _varints(*_VARINT[value_type], raw)
    elif value_type in _SIZED:
        found = _strings(*_SIZED[value_type], raw)
    if found is not None:
        return found, {}
    column = value_pb2.Column()
    faults = _fill_parsed(column, raw, parse)
    return column.SerializeToString(), faults


def _fixed(kind: Fixed, raw: Sequence[Raw]) -> bytes | None:
    zero = kind.zero
    payload = kind.strip([value or zero for value in raw])
    return None if payload is None else wire.packed(kind.array, payload)


def _varints(tag: int, array: str, raw: Sequence[Raw]) -> bytes | None:
    payloads = []
    for value in raw:
        if not value:
            payloads.append(b"\0")
        elif value[0] == tag and value[-1] < 0x80 and (len(value) == 2 or _one_varint(value)):
            payloads.append(value[1:])
        else:
            return None
    return wire.packed(array, b"".join(payloads))


def _one_varint(value: bytes) -> bool:
    """Tell whether a tag is followed by a single number, by all but its last byte."""
    return 2 < len(value) <= 11 and min(value[1:-1]) >= 0x80


def _strings(tag: int, array: str, raw: Sequence[Raw]) -> bytes | None:
    payloads = []
    for value in raw:
        if not value:
            payloads.append(b"\0")
        elif value[0] == tag and value[1] < 0x80 and len(value) == value[1] + 2:
            payloads.append(value[1:])
        else:
            return None  # long, or not what it seems: parse
    if array == "strings" and not _is_text(b"".join(payloads)):
        return None
    return wire.listed(array, payloads)


def _is_text(joined: bytes) -> bool:
    # Lengths below 0x80 are ASCII, so they cut sequences as the end of a string does.
    if joined.isascii():
        return True
    try:
        joined.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fill_parsed(column: Any, raw: Sequence[Raw], parse: Parse) -> dict[int, str]:
    faults: dict[int, str] = {}
    parsed: list[tuple[str, Any]] = []
    for row, value in enumerate(raw):
        item: tuple[str, Any] = ("", None)
        if value:
            try:
                item = parse(value)
                if item[0] == "unix_timestamp_val":
                    item = ("", None) if item[1] == _NAT else (item[0], _micros(item[1]))
            except ValueError as error:
                faults[row] = str(error)
        parsed.append(item)
    arrays = {_ARRAYS.get(kind, "mixed") for kind, _ in parsed if kind}
    if len(arrays) == 1 and "mixed" not in arrays:
        array = arrays.pop()
        zero = _ZERO[array]
        getattr(column, array).values.extend(v if kind else zero for kind, v in parsed)
    elif arrays:
        column.mixed.SetInParent()
        for row, (kind, payload) in enumerate(parsed):
            entry = column.mixed.values.add()
            try:
                if kind:
                    _set(entry, kind, payload)
            except ValueError as error:
                entry.Clear()
                faults[row] = str(error)
    return faults


def is_null(raw: Raw, parse: Parse) -> bool:
    """Tell whether a stored value that is not empty says null all the same."""
    if not raw:
        return True
    tag = raw[0]
    if tag == 0x40:  # unix_timestamp_val: NaT
        return bool(parse(raw)[1] == _NAT)
    return tag == 0x98  # null_val's two-byte tag starts with it


def _micros(seconds: int) -> int:
    if not -_MAX_S <= seconds <= _MAX_S:
        raise ValueError("a time is out of range")
    return seconds * 1_000_000


def _set(entry: Any, kind: str, payload: Any) -> None:
    """Set a `Value` to a parsed value.

    Sets are lists; maps are lists of [key, value] pairs, by key; zoned times are [time, zone].
    """
    array = _ARRAYS.get(kind)
    if array is not None:
        setattr(entry, _KINDS[array], payload)
    elif kind in ("list_val", "set_val"):
        _list(entry, ((v.WhichOneof("val") or "", v) for v in payload.val))
    elif kind in ("map_val", "struct_val"):
        _map(entry, payload)
    elif kind in ("map_list_val", "struct_list_val"):
        entry.list_value.SetInParent()
        for item in payload.val:
            _map(entry.list_value.values.add(), item)
    elif kind == "scalar_map_val":
        entry.list_value.SetInParent()
        for item in sorted(payload.val, key=lambda item: str(item.key)):
            pair = entry.list_value.values.add().list_value.values
            _map_key(pair.add(), item.key)
            _nested(pair.add(), item.value)
    elif kind == "zoned_timestamp_val":
        pair = entry.list_value.values
        pair.add().unix_time_us = _micros(payload.unix_timestamp)
        pair.add().string_value = payload.zone
    elif kind in ("unix_timestamp_list_val", "unix_timestamp_set_val"):
        entry.list_value.SetInParent()
        for seconds in payload.val:
            value = entry.list_value.values.add()
            if seconds != _NAT:
                value.unix_time_us = _micros(seconds)
    elif kind.endswith(("_list_val", "_set_val")):
        field = _LIST_ENTRIES[kind.removesuffix("_val").removesuffix("_list").removesuffix("_set")]
        entry.list_value.SetInParent()
        entry.list_value.values.extend(value_pb2.Value(**{field: v}) for v in payload.val)
    elif kind != "null_val":
        raise ValueError(f"{kind} has no place in the contract")


def _list(entry: Any, values: Any) -> None:
    entry.list_value.SetInParent()
    for _, value in values:
        _nested(entry.list_value.values.add(), value)


def _nested(entry: Any, value: Any) -> None:
    kind = value.WhichOneof("val")
    if kind == "unix_timestamp_val":
        if value.unix_timestamp_val != _NAT:
            entry.unix_time_us = _micros(value.unix_timestamp_val)
    elif kind:
        _set(entry, kind, getattr(value, kind))


def _map(entry: Any, payload: Any) -> None:
    entry.list_value.SetInParent()
    for key in sorted(payload.val):
        pair = entry.list_value.values.add().list_value.values
        pair.add().string_value = key
        _nested(pair.add(), payload.val[key])


def _map_key(entry: Any, key: Any) -> None:
    kind = key.WhichOneof("key")
    if kind == "unix_timestamp_key":
        entry.unix_time_us = _micros(key.unix_timestamp_key)
    elif kind:
        setattr(entry, _MAP_KEYS.get(kind, "string_value"), getattr(key, kind))


def python_column(
    value_type: str, raw: Sequence[Raw], to_python: Callable[[Raw, str], Any]
) -> list[Any]:
    """Return stored values as Python values, as Feast gives them to on-demand views."""
    kind = FIXED.get(value_type)
    if kind is not None:
        zero = kind.zero
        payload = kind.strip([value or zero for value in raw])
        if payload is not None:
            numbers = kind.unpack(payload)
            return [n if v else None for n, v in zip(numbers, raw, strict=True)]
    return list(map(to_python, raw, repeat(value_type)))


def encode_computed(
    value_type: str,
    values: Sequence[Any],
    from_python: Callable[[Sequence[Any], str], list[bytes]],
    parse: Parse,
) -> tuple[bytes, Nulls]:
    """Return what an on-demand view computed as `encode` does, and which rows are null.

    Raises:
        Exception: whatever Feast raises for values that don't fit the type.
    """
    kind = FIXED.get(value_type)
    if kind is not None and all(v is None or type(v) is float for v in values):
        # Feast stores NaN of an on-demand view as null.
        nulls = [v is None or v != v for v in values]  # noqa: PLR0124 - NaN's own test
        if all(nulls):
            return b"", nulls
        numbers = [0.0 if n else v for v, n in zip(values, nulls, strict=True)]
        column = value_pb2.Column()
        getattr(column, kind.array).values.extend(numbers)
        return column.SerializeToString(), nulls
    raw = from_python(values, value_type)
    found, faults = encode(value_type, raw, parse)
    if faults:
        raise ValueError(next(iter(faults.values())))
    return found, [is_null(value, parse) for value in raw]


def seconds_to_datetime(seconds: int) -> datetime:
    """Return a UNIX_TIMESTAMP as Feast gives it to on-demand views."""
    return datetime.fromtimestamp(seconds, tz=UTC)
