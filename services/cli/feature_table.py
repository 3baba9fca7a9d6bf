"""Feature vectors and feature services as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.features.v1 import features_pb2

_STYLES = {"present": "green", "stale": "yellow", "null": "magenta"}
_LONG = 60


def vector(answer: features_pb2.GetFeaturesResponse, row: int, now: datetime) -> RenderableType:
    """One row of an answer: each feature's value, status, age, data class."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("feature", "value", "status", "event time", "age", "data class", "pii"):
        table.add_column(title, no_wrap=title != "value")
    for column in answer.columns:
        status = _short(decision_pb2.FeatureStatus, column.statuses[row], "FEATURE_STATUS_")
        there = status in ("present", "stale")
        event_us = column.event_times_unix_us[row]
        event = datetime.fromtimestamp(event_us / 1e6, tz=UTC) if event_us else None
        table.add_row(
            Text.assemble((f"{column.view}:", "dim"), column.feature),
            Text(_value(column, row) if there else "", overflow="ellipsis"),
            Text(status.replace("_", " "), style=_STYLES.get(status, "red")),
            f"{event:%Y-%m-%d %H:%M:%S}" if event else "",
            age(now - event) if event else "",
            _data_class(column.data_class),
            column.pii,
        )
    lineage = Text.assemble(
        ("data class ", "dim"),
        _data_class(answer.data_class) or "not said",
        ("   registry ", "dim"),
        answer.lineage.registry_version[:12],
        *[
            part
            for view in answer.lineage.views
            for part in ((f"   {view.view} ", "dim"), view.version_hash[:12])
        ],
    )
    return Group(table, Text(""), lineage)


def services(answer: features_pb2.DescribeResponse) -> RenderableType:
    """Feature services, what each needs and gives."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("feature service", "join keys", "request fields", "views", "data class"):
        table.add_column(title)
    for service in answer.feature_services:
        table.add_row(
            service.name,
            _fields(service.join_keys),
            _fields(service.request_fields),
            ", ".join(
                f"{view.view} ({sum(f.view == view.view for f in service.features)})"
                for view in service.views
            ),
            _data_class(service.data_class),
        )
    return Group(table, Text(f"\nregistry {answer.registry_version[:12]}", style="dim"))


def age(span: timedelta) -> str:
    """A time span in its largest unit: `3 d`, `5 min`."""
    seconds = span.total_seconds()
    if seconds < 0:
        return "in the future"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _value(column: features_pb2.FeatureColumn, row: int) -> str:
    array = column.values.WhichOneof("values")
    if array is None:
        return ""
    if array == "mixed":
        text = _mixed(column.values.mixed.values[row])
    elif array == "unix_times_us":
        text = _time(column.values.unix_times_us.values[row])
    else:
        text = _plain(getattr(column.values, array).values[row])
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


def _mixed(value: Any) -> str:
    kind = value.WhichOneof("kind")
    if kind is None:
        return "null"
    if kind == "list_value":
        return "[" + ", ".join(_mixed(item) for item in value.list_value.values) + "]"
    if kind == "unix_time_us":
        return _time(value.unix_time_us)
    return _plain(getattr(value, kind))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    return value.hex() if isinstance(value, bytes) else str(value)


def _time(micros: int) -> str:
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros):%Y-%m-%d %H:%M:%S}"


def _fields(fields: Any) -> str:
    return ", ".join(f"{field.name} ({field.value_type})" for field in fields)


def _data_class(value: int) -> str:
    return "" if not value else _short(context_pb2.DataClass, value, "DATA_CLASS_")


def _short(enum: Any, value: int, prefix: str) -> str:
    name: str = enum.Name(value)
    return name.removeprefix(prefix).lower()
