"""Served values against offline ones, for the same entity and the same time.

Each entity is read online now. For each view, the row's event time is the time of the offline
lookup: what training would have seen then is what should be served now. On-demand views are not
compared: their inputs are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet
from rich.table import Table

from services.features.store import feast_quietly
from twinpath.common.v1 import decision_pb2, value_pb2
from twinpath.features.v1 import features_pb2

_THERE = (decision_pb2.FEATURE_STATUS_PRESENT, decision_pb2.FEATURE_STATUS_STALE)
_FLOAT_DIGITS = 1e-6
_DOUBLE_DIGITS = 1e-12


class SkewError(Exception):
    """The repo has no such feature service, or can't be read."""


@dataclass(slots=True)
class Skew:
    """What came out for one feature, in numbers of entities.

    `largest` is the largest difference between two numbers, in the feature's own unit.
    """

    name: str
    same: int = 0
    differ: int = 0
    online_only: int = 0
    offline_only: int = 0
    largest: float = 0.0
    entities: list[str] = field(default_factory=list)

    @property
    def skewed(self) -> bool:
        """Whether anything is not the same."""
        return bool(self.differ or self.online_only or self.offline_only)

    def add(self, online: Any, offline: Any, entity: str, digits: float) -> None:
        """Compare one entity's two values; None is no value."""
        if online is None and offline is None:
            return
        if online is None or offline is None:
            self.online_only += offline is None
            self.offline_only += online is None
        elif _same(online, offline, digits):
            self.same += 1
            return
        else:
            self.differ += 1
            if isinstance(online, float | int) and isinstance(offline, float | int):
                self.largest = max(self.largest, abs(online - offline))
        self.entities.append(entity)


def read_entities(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the join keys of a CSV or Parquet file's rows, each entity once.

    Raises:
        ValueError: the file can't be read or has not all the keys.
    """
    read = parquet.read_table if path.suffix == ".parquet" else csv.read_csv
    table = read(path)
    missing = [key for key in keys if key not in table.column_names]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    rows = table.select(list(keys)).to_pylist()
    return list({tuple(row.values()): row for row in rows}.values())


def key_columns(entities: Sequence[Mapping[str, Any]]) -> list[value_pb2.Column]:
    """Return entities as the columns of a request."""
    columns = []
    for name in entities[0]:
        column = value_pb2.Column(name=name)
        values = [entity[name] for entity in entities]
        if all(isinstance(value, int) for value in values):
            column.int64s.values.extend(values)
        else:
            column.strings.values.extend(str(value) for value in values)
        columns.append(column)
    return columns


def compare(
    repo: Path,
    service: str,
    entities: Sequence[Mapping[str, Any]],
    answer: features_pb2.GetFeaturesResponse,
) -> list[Skew]:
    """Return the skew of each stored feature of a feature service.

    Args:
        repo: The Feast repo, whose offline store is asked.
        service: The feature service's name.
        entities: What was asked for online, row by row.
        answer: What was served.

    Raises:
        SkewError: the repo has no such feature service, or can't be read.
    """
    with feast_quietly():
        from feast import FeatureStore  # noqa: PLC0415 - seconds

        try:
            store = FeatureStore(repo_path=str(repo))
            projections = store.get_feature_service(service).feature_view_projections
            stored = {view.name for view in store.list_feature_views()}
        except Exception as error:
            raise SkewError(f"{type(error).__name__}: {error}") from error
        found: list[Skew] = []
        for projection in projections:
            if projection.name not in stored:
                continue
            shown: str = projection.name_to_use()  # type: ignore[no-untyped-call]
            columns = [column for column in answer.columns if column.view == shown]
            offline = _offline(store, projection, entities, columns[0].event_times_unix_us)
            found += [_feature(column, offline, entities) for column in columns]
    return found


def _offline(
    store: Any, projection: Any, entities: Sequence[Mapping[str, Any]], times: Sequence[int]
) -> dict[int, Mapping[str, Any]]:
    """Return the offline row for each entity that has an event time online."""
    view = store.get_feature_view(projection.name)
    names = {projection.join_key_map.get(key, key): key for key in view.join_keys}
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    asked = [
        {
            **{key: entities[row][name] for name, key in names.items()},
            # Online times are rounded to microseconds; the row's own time must not be cut off.
            "event_timestamp": epoch + timedelta(microseconds=time + 1),
            "asked_row": row,
        }
        for row, time in enumerate(times)
        if time
    ]
    if not asked:
        return {}
    refs = [f"{projection.name}:{feature.name}" for feature in projection.features]
    frame = pa.Table.from_pylist(asked).to_pandas()
    job = store.get_historical_features(entity_df=frame, features=refs)
    return {int(row["asked_row"]): row for row in job.to_df().to_dict("records")}


def _feature(
    column: features_pb2.FeatureColumn,
    offline: Mapping[int, Mapping[str, Any]],
    entities: Sequence[Mapping[str, Any]],
) -> Skew:
    skew = Skew(f"{column.view}:{column.feature}")
    array = column.values.WhichOneof("values") or ""
    digits = _FLOAT_DIGITS if array == "floats" else _DOUBLE_DIGITS
    values = getattr(column.values, array).values if array else []
    for number, status in enumerate(column.statuses):
        online = _plain(values[number], array) if array and status in _THERE else None
        if column.event_times_unix_us[number]:
            there = offline.get(number, {}).get(column.feature)
            name = ", ".join(f"{key}={value}" for key, value in entities[number].items())
            skew.add(online, _python(there), name, digits)
    return skew


def _plain(value: Any, array: str) -> Any:
    if array == "mixed":
        kind = value.WhichOneof("kind")
        if kind == "list_value":
            return [_plain(item, "mixed") for item in value.list_value.values]
        return None if kind is None else getattr(value, kind)
    return value


def _python(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if hasattr(value, "timestamp"):
        return int(value.timestamp()) * 1_000_000
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _same(one: Any, other: Any, digits: float) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(a, b, digits) for a, b in pairs)
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=digits)
    return bool(one == other)


def table(found: Sequence[Skew]) -> Table:
    """Show the skew of each feature."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("feature", "same", "differ", "online only", "offline only", "largest", "such as"):
        made.add_column(title, justify="left" if title in ("feature", "such as") else "right")
    for skew in found:
        counts = (skew.same, skew.differ, skew.online_only, skew.offline_only)
        largest = f"{skew.largest:.4g}" if skew.largest else ""
        style = "red" if skew.skewed else ""
        such = "; ".join(skew.entities[:2])
        made.add_row(skew.name, *map(str, counts), largest, such, style=style)
    return made
