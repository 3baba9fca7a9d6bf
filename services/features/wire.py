"""Answers, put together from serialized parts.

A column's names, tags and data class never change, and a stored double is the same eight bytes in
Redis and in the answer. So an answer is joined from parts that are serialized already and parsed
once, which takes a tenth of the time of filling in its fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twinpath.common.v1 import value_pb2
from twinpath.features.v1 import features_pb2

_FIXED_OPENINGS = 256  # sizes of a column that are remembered


def varint(number: int) -> bytes:
    """Return a number as a varint."""
    if number < 0x80:
        return _SMALL[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = [bytes([number]) for number in range(0x80)]


def tag(message: Any, name: str) -> bytes:
    """Return the tag of a field that has a length: messages, strings, packed arrays."""
    return varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | 2)


def sized(tag_bytes: bytes, payload: bytes) -> bytes:
    """Return a field that has a length."""
    return tag_bytes + varint(len(payload)) + payload


_COLUMNS = tag(features_pb2.GetFeaturesResponse, "columns")
_ROWS = tag(features_pb2.GetFeaturesResponse, "rows")
_VALUES = tag(features_pb2.FeatureColumn, "values")
_STATUSES = tag(features_pb2.FeatureColumn, "statuses")
_TIMES = tag(features_pb2.FeatureColumn, "event_times_unix_us")
_ROW_ID = tag(features_pb2.RowResult, "id")
_ARRAY = tag(value_pb2.Int64Array, "values")
_ARRAYS = {
    item.name: tag(value_pb2.Column, item.name)
    for item in value_pb2.Column.DESCRIPTOR.oneofs_by_name["values"].fields
}


@dataclass(frozen=True, slots=True)
class Slot:
    """One column of the answer: what never changes about it, serialized.

    `head` is of the `FeatureColumn`, `name` of the `Column` in it.
    """

    head: bytes
    name: bytes
    _openings: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def opening(self, values: int, tail: int) -> bytes:
        """Return all that stands before the values, of which the sizes are given in bytes."""
        found = self._openings.get((values, tail))
        if found is None:
            if len(self._openings) >= _FIXED_OPENINGS:
                self._openings.clear()
            column = varint(len(self.name) + values)
            size = len(self.head) + len(_VALUES) + len(column) + len(self.name) + values + tail
            found = b"".join((_COLUMNS, varint(size), self.head, _VALUES, column, self.name))
            self._openings[values, tail] = found
        return found


def slot(column: features_pb2.FeatureColumn) -> Slot:
    """Return a column without rows as what is serialized of it."""
    name = value_pb2.Column(name=column.values.name).SerializeToString()
    head = features_pb2.FeatureColumn()
    head.CopyFrom(column)
    head.ClearField("values")
    return Slot(head.SerializeToString(), name)


def array_head(array: str, size: int) -> bytes:
    """Return what stands before the packed values, `size` bytes, of an array of a `Column`."""
    inner = _ARRAY + varint(size)
    return _ARRAYS[array] + varint(len(inner) + size) + inner


def packed(array: str, payload: bytes) -> bytes:
    """Return an array of a `Column` whose values are packed."""
    return array_head(array, len(payload)) + payload


def listed(array: str, values: Sequence[bytes]) -> bytes:
    """Return an array of a `Column` whose values have a length each, which they begin with."""
    return sized(_ARRAYS[array], _ARRAY + _ARRAY.join(values))


def tail(statuses: Sequence[int], times: bytes) -> bytes:
    """Return the statuses and the event times, as `event_times` gave them, of a column."""
    return sized(_STATUSES, bytes(statuses)) + times


def event_times(times_us: Sequence[int]) -> bytes:
    """Return the event times of a column."""
    array = value_pb2.Int64Array(values=times_us).SerializeToString()
    return _TIMES + array[len(_ARRAY) :]


def row(identity: str) -> bytes:
    """Return the result of a row that is well."""
    return sized(_ROWS, sized(_ROW_ID, identity.encode()))
