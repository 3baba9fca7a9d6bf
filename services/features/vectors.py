"""From what Redis gave to feature vectors: columns, statuses, event times.

Works on the rows that can be answered; rows with faults of their own are spread in between at
the end, with zero values and no status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from operator import le
from typing import Any, Protocol

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis import errors
from services.features import freshness, transform, values, wire
from services.features.coalescer import Row
from services.features.definitions import Field, OnDemandView, Raw, Status
from services.features.inputs import Inputs
from services.features.prepared import Block, Prepared

log = logging.getLogger(__name__)


class Codec(Protocol):
    """Feast's own conversions, for what the fast ways don't cover; see `store`."""

    def parse(self, raw: bytes) -> tuple[str, Any]:
        """Return (kind, payload) of a stored value."""
        ...

    def to_python(self, raw: bytes | None, value_type: str) -> Any:
        """Return a stored value as on-demand views see it."""
        ...

    def from_python(self, values: Sequence[Any], value_type: str) -> list[bytes]:
        """Return Python values as stored values."""
        ...


@dataclass(slots=True)
class _View:
    """What was read of one view: a raw column for each feature, and its rows' times.

    `times` are the event times as they stand in an answer.
    """

    columns: Sequence[Sequence[Raw]]
    events_us: list[int | None]
    statuses: list[Status]
    times: bytes = b""


@dataclass(slots=True)
class Vectors:
    """Assembles one answer.

    Args:
        prepared: The feature service.
        codec: Feast's conversions.
        now_us: The clock when the answer is assembled.
        rows: How many rows are answered here.

    `within` are columns of the answer whose values are known to keep their ranges.
    """

    prepared: Prepared
    codec: Codec
    now_us: int
    rows: int
    faults: dict[int, errors.ServiceError] = field(default_factory=dict)
    within: set[int] = field(default_factory=set)
    _views: list[_View] = field(default_factory=list)
    _computed: list[transform.Computed] = field(default_factory=list)
    _demand_status: list[list[Status]] = field(default_factory=list)
    _demand_fresh: list[list[Status]] = field(default_factory=list)

    def read(self, groups: Sequence[Sequence[Row]]) -> None:
        """Take in the rows of each group of reads."""
        tables: list[list[Sequence[Raw]]] = []
        for group, rows in zip(self.prepared.groups, groups, strict=True):
            width = len(group.fields.names)
            clean = [self._row(number, row, width) for number, row in enumerate(rows)]
            tables.append(list(zip(*clean, strict=True)) if clean else [()] * width)
        for read, where in zip(self.prepared.service.reads, self.prepared.slices, strict=True):
            table = tables[where.group]
            columns = table[where.start : where.time]
            events = [self._time(n, raw) for n, raw in enumerate(table[where.time])]
            statuses = freshness.row_statuses(
                events, columns, ttl_us=read.ttl_us, now_us=self.now_us
            )
            self._views.append(_View(columns, events, statuses))

    def _row(self, number: int, row: Row, width: int) -> Sequence[Raw]:
        if isinstance(row, Exception):
            self.faults[number] = errors.DataLossError(
                "FEATURE_ROW_CORRUPT", "what is stored under this row's key is not a feature row"
            )
            return [None] * width
        return row

    def _time(self, number: int, raw: Raw) -> int | None:
        if raw is None:
            return None
        try:
            return event_time_us(raw)
        except ValueError:
            self.faults[number] = errors.DataLossError(
                "FEATURE_ROW_CORRUPT", "the row's event time can't be read"
            )
            return 0

    def compute(self, inputs: Inputs) -> Callable[[], None]:
        """Return the work of on-demand views; the caller decides in which thread it runs."""

        def work() -> None:
            python: dict[tuple[int, int], list[Any]] = {}
            given = self._given(inputs)
            for view in self.prepared.service.on_demand:
                columns = dict(given)
                for item in view.inputs:
                    place = (item.read, item.feature)
                    if place not in python:
                        raw = self._views[item.read].columns[item.feature]
                        python[place] = self._python(raw, item.value_type)
                    for name in item.names:
                        columns[name] = python[place]
                result = transform.run(view, columns, self.rows)
                self._computed.append(result)
                statuses = self._input_statuses(view)
                self._demand_status.append(statuses)
                self._demand_fresh.append(self._freshness(view))
                self._judge(view, result, statuses)

        return work

    def _given(self, inputs: Inputs) -> dict[str, Sequence[Any]]:
        given: dict[str, Sequence[Any]] = {}
        service = self.prepared.service
        for wanted, columns in (
            (service.join_keys, inputs.keys),
            (service.request_fields, inputs.requests),
        ):
            for item in wanted:
                column = columns[item.name]
                given[item.name] = _datetimes(column) if _is_time(item) else column
        return given

    def _python(self, raw: Sequence[Raw], value_type: str) -> list[Any]:
        try:
            return values.python_column(value_type, raw, self.codec.to_python)
        except Exception:  # noqa: BLE001 - a corrupt value, or one that Feast can't convert
            column: list[Any] = []
            for number, value in enumerate(raw):
                try:
                    column.append(self.codec.to_python(value, value_type))
                except Exception:  # noqa: BLE001 - as above; that row fails
                    column.append(None)
                    self._corrupt(number, "an input of an on-demand view")
            return column

    def _input_statuses(self, view: OnDemandView) -> list[Status]:
        """Return the worst status among each row's inputs."""
        worst = [Status.PRESENT] * self.rows
        for item in view.inputs:
            found = self._views[item.read]
            statuses = freshness.column_statuses(found.columns[item.feature], found.statuses)
            if any(status is not Status.PRESENT for status in statuses):
                worst = [freshness.worst(pair) for pair in zip(worst, statuses, strict=True)]
        return worst

    def _freshness(self, view: OnDemandView) -> list[Status]:
        """Return the status of what is computed: derived from something stale, it is stale."""
        reads = {item.read for item in view.inputs}
        found = [Status.PRESENT] * self.rows
        for read in reads:
            if Status.STALE in self._views[read].statuses:
                for row, status in enumerate(self._views[read].statuses):
                    if status is Status.STALE:
                        found[row] = status
        return found

    def _judge(
        self, view: OnDemandView, result: transform.Computed, statuses: Sequence[Status]
    ) -> None:
        """Excuse failures of rows that lack an input; others are the definition's fault."""
        for number, error in result.failed.items():
            if statuses[number] in (Status.PRESENT, Status.STALE):
                log.warning(
                    "on-demand view failed",
                    extra={"view": view.name, "error": type(error).__name__},
                )
                self.faults.setdefault(
                    number,
                    errors.FailedPreconditionError(
                        "TRANSFORMATION_FAILED",
                        f"on-demand view {view.name} failed: {type(error).__name__}",
                        metadata={"view": view.name},
                    ),
                )

    def _corrupt(self, number: int, what: str) -> None:
        self.faults.setdefault(
            number, errors.DataLossError("FEATURE_ROW_CORRUPT", f"{what} can't be read")
        )

    def write(self, places: Sequence[int] | None, total: int) -> bytes:
        """Return the columns of the answer, serialized.

        Args:
            places: Where each row stands in the answer; None: the rows are the answer.
            total: How many rows the answer has.
        """
        if places is not None:
            self._spread(places, total)
        for view in self._views:
            view.times = wire.event_times([event or 0 for event in view.events_us])
        pieces = [b""] * len(self.prepared.slots)
        for block in self.prepared.blocks:
            if not self._write_block(block, pieces):
                for number, output in enumerate(block.outputs):
                    column = block.start + number
                    pieces[output] = self._write_stored(block.read, column, output, places)
        none = wire.event_times([0] * total) if self.prepared.computed else b""
        for output in self.prepared.computed:
            pieces[output] = self._write_computed(output, places, total, none)
        return b"".join(pieces)

    def _spread(self, places: Sequence[int], total: int) -> None:
        for view in self._views:
            view.columns = [_spread(column, places, total, None) for column in view.columns]
            view.events_us = _spread(view.events_us, places, total, None)
            view.statuses = _spread(view.statuses, places, total, Status.UNSPECIFIED)

    def _write_block(self, block: Block, pieces: list[bytes]) -> bool:
        """Write neighbouring columns of one kind; tell whether they are what they should be."""
        if block.kind is None:
            return False
        view = self._views[block.read]
        columns = view.columns[block.start : block.start + len(block.outputs)]
        cells: list[Any] = list(chain.from_iterable(columns))
        whole = all(cells)
        if not whole:
            zero = block.kind.zero
            cells = [cell or zero for cell in cells]
        payload = block.kind.strip(cells)
        if payload is None:
            return False
        if block.limits is not None and _are_within(block.kind, block.limits, payload):
            self.within.update(block.outputs)
        tail = wire.tail(view.statuses, view.times)
        size = len(payload) // len(columns)
        head = wire.array_head(block.kind.array, size)
        width = len(head) + size
        slots = self.prepared.slots
        for number, output in enumerate(block.outputs):
            if whole or all(columns[number]):
                opening = slots[output].opening(width, len(tail))
                part = payload[number * size : number * size + size]
                pieces[output] = b"".join((opening, head, part, tail))
            else:
                statuses = freshness.column_statuses(columns[number], view.statuses)
                array = head + payload[number * size : number * size + size]
                if not any(columns[number]):
                    array = b""
                pieces[output] = self._piece(output, array, statuses, view.times)
        return True

    def _piece(self, output: int, array: bytes, statuses: Sequence[Status], times: bytes) -> bytes:
        tail = wire.tail(statuses, times)
        return self.prepared.slots[output].opening(len(array), len(tail)) + array + tail

    def _write_stored(
        self, read: int, column: int, output: int, places: Sequence[int] | None
    ) -> bytes:
        view = self._views[read]
        raw = view.columns[column]
        feature = self.prepared.service.outputs[output]
        value_type = feature.field.value_type
        array, bad = values.encode(value_type, raw, self.codec.parse)
        for row, why in bad.items():
            number = places.index(row) if places is not None else row
            self._corrupt(number, f"{feature.view}:{feature.field.name} ({why})")
        statuses = freshness.column_statuses(raw, view.statuses)
        if value_type not in values.NEVER_NULL:
            statuses = [
                Status.NULL
                if status in (Status.PRESENT, Status.STALE) and self._says_null(value)
                else status
                for value, status in zip(raw, statuses, strict=True)
            ]
        return self._piece(output, array, statuses, view.times)

    def _says_null(self, value: Raw) -> bool:
        try:
            return values.is_null(value, self.codec.parse)
        except ValueError:
            return False

    def _write_computed(
        self, number: int, places: Sequence[int] | None, total: int, times: bytes
    ) -> bytes:
        output = self.prepared.service.outputs[number]
        assert output.computed is not None
        demand, place = output.computed
        result = self._computed[demand]
        column = _spread(result.columns[place], places, total, None)
        array, nulls = b"", [True] * total
        try:
            array, nulls = values.encode_computed(
                output.field.value_type, column, self.codec.from_python, self.codec.parse
            )
        except Exception as error:  # noqa: BLE001 - the view gave what its schema does not allow
            for row in range(self.rows):
                self.faults.setdefault(
                    row,
                    errors.FailedPreconditionError(
                        "TRANSFORMATION_FAILED",
                        f"{output.view}:{output.field.name} is no {output.field.value_type}: "
                        f"{type(error).__name__}",
                        metadata={"view": output.view, "feature": output.field.name},
                    ),
                )
        statuses: list[Status] = []
        missing = place in result.missing
        failed, fresh = self._demand_status[demand], self._demand_fresh[demand]
        for row in range(self.rows):
            if row in result.failed:
                statuses.append(failed[row])
            elif missing:
                statuses.append(Status.ABSENT_FEATURE)
            elif nulls[places[row] if places is not None else row]:
                statuses.append(Status.NULL)
            else:
                statuses.append(fresh[row])
        return self._piece(
            number, array, _spread(statuses, places, total, Status.UNSPECIFIED), times
        )


def _are_within(
    kind: values.Fixed, limits: tuple[Sequence[float], Sequence[float]], payload: bytes
) -> bool:
    """Tell whether all values keep their columns' ranges; with NaN they don't."""
    lows, highs = limits
    if len(payload) == len(lows) * (kind.size - 1):
        numbers = kind.unpack(payload)
        return all(map(le, lows, numbers)) and all(map(le, numbers, highs))
    table = np.frombuffer(payload, dtype=kind.numpy).reshape(len(lows), -1)
    return bool(
        (table >= np.array(lows)[:, None]).all() and (table <= np.array(highs)[:, None]).all()
    )


@lru_cache(maxsize=65_536)
def event_time_us(raw: bytes) -> int:
    """Return a stored event time, rounded to microseconds as Feast rounds it.

    Raises:
        ValueError: when the bytes are no time.
    """
    try:
        stamp = Timestamp.FromString(raw)
    except Exception as error:
        raise ValueError("not a timestamp") from error
    if stamp.nanos % 1000 == 0:
        return int(stamp.seconds) * 1_000_000 + stamp.nanos // 1000
    moment = datetime.fromtimestamp(stamp.seconds + stamp.nanos / 1_000_000_000.0, tz=UTC)
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


def _is_time(item: Field) -> bool:
    return item.value_type == "UNIX_TIMESTAMP"


def _datetimes(column: Sequence[Any]) -> list[Any]:
    return [None if v is None else values.seconds_to_datetime(v) for v in column]


def _spread(column: Any, places: Sequence[int] | None, total: int, empty: Any) -> Any:
    if places is None:
        return column
    full = [empty] * total
    for place, value in zip(places, column, strict=True):
        full[place] = value
    return full
