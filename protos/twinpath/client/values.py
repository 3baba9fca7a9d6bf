"""Plain Python values to the contract's values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from twinpath.common.v1 import value_pb2

_INT64 = range(-(2**63), 2**63)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_values(values: Mapping[str, Any], where: str) -> dict[str, value_pb2.Value]:
    """Return a mapping's values as messages.

    None, bool, int, float, str, bytes, aware datetime, lists and tuples of these, and NumPy
    scalars and arrays.

    Args:
        values: By name.
        where: What they are, for messages: "entity".

    Raises:
        TypeError: A value of another kind; the message names it.
        ValueError: A value that the contract can't carry; the message names it.
    """
    return {name: to_value(value, f"{where}[{name!r}]") for name, value in values.items()}


def to_value(value: Any, where: str) -> value_pb2.Value:
    """Return one value as a message. Raises as `to_values` does."""
    if value is None:
        return value_pb2.Value()
    if isinstance(value, bool):
        return value_pb2.Value(bool_value=value)
    if isinstance(value, int):
        if value not in _INT64:
            raise ValueError(f"{where}: {value} does not fit into 64 bits")
        return value_pb2.Value(int64_value=int(value))
    if isinstance(value, float):
        return value_pb2.Value(double_value=value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where}: the text can't be written as UTF-8") from None
        return value_pb2.Value(string_value=value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value_pb2.Value(bytes_value=bytes(value))
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{where}: a time needs its time zone, such as datetime.UTC")
        return value_pb2.Value(unix_time_us=(value - _EPOCH) // _MICROSECOND)
    if isinstance(value, (list, tuple)):
        entries = [to_value(entry, f"{where}[{place}]") for place, entry in enumerate(value)]
        return value_pb2.Value(list_value=value_pb2.ListValue(values=entries))
    plain = getattr(value, "tolist", None)  # NumPy's scalars and arrays, without importing it
    if callable(plain):
        return to_value(plain(), where)
    raise TypeError(f"{where}: {type(value).__name__} is no value of the contract")
