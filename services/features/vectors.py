"""From what Redis gave to feature vectors: columns, statuses, event times.

Works on the rows that can be answered; rows with faults of their own are spread in between at
the end, with zero values and no status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis import errors
from services.features import freshness, transform, values
from services.features.coalescer import Row
from services.features.definitions import Field, OnDemandView, Output, Raw, Status
from services.features.inputs import Inputs
from services.features.prepared import Prepared
from twinpath.features.v1 import features_pb2

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
    """What was read of one view: a raw column for each feature, and its rows' times."""

    columns: list[Sequence[Raw]]
    events_us: list[int | None]
    statuses: list[Status]


@dataclass(slots=True)
class Vectors:
    """Assembles one answer.

    Args:
        prepared: The feature service.
        codec: Feast's conversions.
        now_us: The clock when the answer is assembled.
        rows: How many rows are answered here.
    """

    prepared: Prepared
    codec: Codec
    now_us: int
    rows: int
    faults: dict[int, errors.ServiceError] = field(default_factory=dict)
    _views: list[_View] = field(default_factory=list)
    _computed: list[transform.Computed] = field(default_factory=list)
    _demand_status: list[list[Status]] = field(default_factory=list)

    def read(self, groups: Sequence[Sequence[Row]]) -> None:
        """Take in the rows of each group of reads."""
        tables: list[list[Sequence[Raw]]] = []
        for group, rows in zip(self.prepared.groups, groups, strict=True):
            width = len(group.fields.names)
            clean = [self._row(number, row, width) for number, row in enumerate(rows)]
            tables.append(list(zip(*clean, strict=True)) if clean else [()] * width)
        times: dict[bytes, int] = {}
        for read, where in zip(self.prepared.service.reads, self.prepared.slices, strict=True):
            table = tables[where.group]
            columns = table[where.start : where.time]
            events = [self._time(n, raw, times) for n, raw in enumerate(table[where.time])]
            found: Sequence[bool] = [True] * self.rows
            if None in events:
                found = [any(v is not None for v in row) for row in zip(*columns, strict=True)]
            statuses = [
                freshness.row_status(
                    event, any_value=any_value, ttl_us=read.ttl_us, now_us=self.now_us
                )
                for event, any_value in zip(events, found, strict=True)
            ]
            self._views.append(_View(columns, events, statuses))

    def _row(self, number: int, row: Row, width: int) -> Sequence[Raw]:
        if isinstance(row, Exception):
            self.faults[number] = errors.DataLossError(
                "FEATURE_ROW_CORRUPT", "what is stored under this row's key is not a feature row"
            )
            return [None] * width
        return row

    def _time(self, number: int, raw: Raw, cache: dict[bytes, int]) -> int | None:
        if raw is None:
            return None
        found = cache.get(raw)
        if found is None:
            try:
                found = cache[raw] = event_time_us(raw)
            except ValueError:
                self.faults[number] = errors.DataLossError(
                    "FEATURE_ROW_CORRUPT", "the row's event time can't be read"
                )
                return 0
        return found

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

    def write(self, response: Any, places: Sequence[int] | None, total: int) -> None:
        """Fill in the columns of a response.

        Args:
            response: A copy of the feature service's template.
            places: Where each row stands in the answer; None: the rows are the answer.
            total: How many rows the answer has.
        """
        outputs = self.prepared.service.outputs
        for column, output in zip(response.columns, outputs, strict=True):
            if output.stored is not None:
                statuses, events = self._stored(column, output, output.stored, places, total)
            else:
                assert output.computed is not None
                statuses, events = self._from_view(column, output, output.computed, places, total)
            column.statuses.extend(_spread(statuses, places, total, Status.UNSPECIFIED))
            column.event_times_unix_us.extend(_spread(events, places, total, 0))

    def _stored(
        self,
        column: features_pb2.FeatureColumn,
        output: Output,
        place: tuple[int, int],
        places: Sequence[int] | None,
        total: int,
    ) -> tuple[Sequence[Status], Sequence[int]]:
        view = self._views[place[0]]
        raw = view.columns[place[1]]
        spread = _spread(raw, places, total, None)
        bad = values.fill(column.values, output.field.value_type, spread, self.codec.parse)
        for row, why in bad.items():
            number = places.index(row) if places is not None else row
            self._corrupt(number, f"{output.view}:{output.field.name} ({why})")
        statuses = freshness.column_statuses(raw, view.statuses)
        if output.field.value_type not in values.NEVER_NULL:
            statuses = [
                Status.NULL
                if status in (Status.PRESENT, Status.STALE) and self._says_null(value)
                else status
                for value, status in zip(raw, statuses, strict=True)
            ]
        return statuses, [event or 0 for event in view.events_us]

    def _says_null(self, value: Raw) -> bool:
        try:
            return values.is_null(value, self.codec.parse)
        except ValueError:
            return False

    def _from_view(
        self,
        column: features_pb2.FeatureColumn,
        output: Output,
        place: tuple[int, int],
        places: Sequence[int] | None,
        total: int,
    ) -> tuple[Sequence[Status], Sequence[int]]:
        result = self._computed[place[0]]
        inputs = self._demand_status[place[0]]
        computed = result.columns[place[1]]
        spread = _spread(computed, places, total, None)
        try:
            nulls = values.fill_computed(
                column.values,
                output.field.value_type,
                spread,
                self.codec.from_python,
                self.codec.parse,
            )
        except Exception as error:  # noqa: BLE001 - the view gave what its schema does not allow
            column.values.ClearField(column.values.WhichOneof("values") or "name")
            column.values.name = f"{output.view}__{output.field.name}"
            nulls = [True] * total
            for number in range(self.rows):
                self.faults.setdefault(
                    number,
                    errors.FailedPreconditionError(
                        "TRANSFORMATION_FAILED",
                        f"{output.view}:{output.field.name} is no {output.field.value_type}: "
                        f"{type(error).__name__}",
                        metadata={"view": output.view, "feature": output.field.name},
                    ),
                )
        missing = place[1] in result.missing
        reads = {item.read for item in self.prepared.service.on_demand[place[0]].inputs}
        statuses: list[Status] = []
        for number in range(self.rows):
            null = nulls[places[number] if places is not None else number]
            if number in result.failed:
                statuses.append(inputs[number])
            elif missing:
                statuses.append(Status.ABSENT_FEATURE)
            elif null:
                statuses.append(Status.NULL)
            else:
                # A value derived from something stale is stale.
                stale = any(self._views[r].statuses[number] is Status.STALE for r in reads)
                statuses.append(Status.STALE if stale else Status.PRESENT)
        return statuses, [0] * self.rows


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


def _spread(
    column: Sequence[Any], places: Sequence[int] | None, total: int, empty: Any
) -> Sequence[Any]:
    if places is None:
        return column
    full = [empty] * total
    for place, value in zip(places, column, strict=True):
        full[place] = value
    return full
