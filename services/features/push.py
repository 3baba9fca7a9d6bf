"""Writes rows of push sources to the online store; an older row never overwrites a newer one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis import errors
from services.features.definitions import PushSource, PushView
from services.features.inputs import Violation, read_columns
from services.features.keys import feature_field, key_encoder, time_field
from services.features.online import OnlineStore
from services.features.vectors import Codec

_CHUNK = 500

# Compares event times and writes in one step on the server: between a read and a write of a
# client's another writer could come. Times are serialized google.protobuf.Timestamp; a negative
# varint has ten bytes, and is taken by its complement because Lua's numbers are doubles.
_WRITE_IF_NEWER = """
local function varint(s, i)
  local v, c, m, n = 0, 0, 1, 0
  while true do
    local b = string.byte(s, i)
    i = i + 1
    n = n + 1
    local low = b % 128
    if n < 10 then
      v = v + low * m
      c = c + (127 - low) * m
      m = m * 128
    end
    if b < 128 then break end
  end
  if n == 10 then return -c - 1, i end
  return v, i
end
local function time(s)
  local seconds, nanos, i = 0, 0, 1
  while i <= #s do
    local tag = string.byte(s, i)
    local v
    v, i = varint(s, i + 1)
    if tag == 8 then seconds = v elseif tag == 16 then nanos = v else break end
  end
  return seconds, nanos
end
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local os, on = time(old)
  local ns, nn = time(ARGV[2])
  if ns < os or (ns == os and nn <= on) then return 0 end
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""


class Pusher:
    """Writes rows.

    Args:
        store: The online store.
        codec: Feast's conversions.
    """

    def __init__(self, store: OnlineStore, codec: Codec) -> None:
        self._store = store
        self._codec = codec

    async def push(
        self, source: PushSource, project: str, columns: Sequence[Any]
    ) -> tuple[int, int]:
        """Write rows to every view of the source; return (rows written, rows left out).

        A row counts as written when at least one view took it.

        Raises:
            InvalidArgumentError: naming every column that is missing, unknown or wrong.
            UnavailableError: when the store does not answer. Rows may have been written; to
                push them again is harmless.
        """
        found, rows = self._check(source, columns)
        times = [_timestamp(value) for value in found[source.timestamp_column]]
        took = [False] * rows
        for view in source.views:
            arguments = self._arguments(view, project, found, times, rows)
            for start in range(0, rows, _CHUNK):
                chunk = arguments[start : start + _CHUNK]
                written = await self._store.run_script(_WRITE_IF_NEWER, chunk)
                for number, answer in enumerate(written, start):
                    took[number] = took[number] or bool(answer)
        return sum(took), rows - sum(took)

    def _check(
        self, source: PushSource, columns: Sequence[Any]
    ) -> tuple[Mapping[str, Sequence[Any]], int]:
        array = columns[0].WhichOneof("values")
        rows = len(getattr(columns[0], array).values) if array else 0
        types = {source.timestamp_column: "UNIX_TIMESTAMP"}
        required = {source.timestamp_column}
        for view in source.views:
            for part in view.key:
                if part.column:
                    types[part.column] = part.value_type
                    required.add(part.column)
            for column, field in view.features:
                types[column] = field.value_type
        if source.created_column and any(c.name == source.created_column for c in columns):
            types[source.created_column] = "UNIX_TIMESTAMP"
        violations: list[Violation] = []
        if rows == 0:
            violations.append(("columns[0]", "has no rows"))
        faults: dict[int, list[Violation]] = {}
        found, wrong = read_columns(types, columns, rows, "columns", nullable=True, faults=faults)
        violations += wrong
        violations += [text for row in sorted(faults) for text in faults[row]]
        for number, column in enumerate(columns):
            if column.name in required and None in found.get(column.name, ()):
                violations.append((f"columns[{number}]", f"{column.name}: a value is null"))
        if violations:
            raise errors.InvalidArgumentError(
                "PUSH_INVALID",
                f"the columns do not fit push source {source.name!r}",
                metadata={"push_source": source.name},
                violations=violations,
            )
        # Whole seconds are enough for values, not for the order of rows.
        for column in columns:
            if column.name == source.timestamp_column:
                found = {**found, column.name: _micros(column)}
        return found, rows

    def _arguments(
        self,
        view: PushView,
        project: str,
        columns: Mapping[str, Sequence[Any]],
        times: Sequence[bytes],
        rows: int,
    ) -> list[tuple[bytes, list[bytes]]]:
        keys = key_encoder(view.key, project)(columns, rows)
        time_name = time_field(view.stored_as)
        names: list[bytes] = []
        stored: list[Sequence[bytes]] = []
        for column, field in view.features:
            names.append(feature_field(view.stored_as, field.name))
            stored.append(self._codec.from_python(columns[column], field.value_type))
        arguments = []
        for row, key in enumerate(keys):
            pairs = [time_name, times[row]]
            for name, values in zip(names, stored, strict=True):
                pairs += (name, values[row])
            arguments.append((key, pairs))
        return arguments


def _micros(column: Any) -> Sequence[int]:
    array = column.WhichOneof("values")
    if array == "mixed":
        return [value.unix_time_us for value in column.mixed.values]
    return list(getattr(column, array).values)


def _timestamp(micros: int) -> bytes:
    stamp = Timestamp()
    stamp.FromMicroseconds(micros)
    return stamp.SerializeToString()
