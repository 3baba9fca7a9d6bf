"""Served values against offline ones, for the same entity and the same time.

Each entity is read online now, or found among the samples that the feature service kept. For each
view, the row's event time is the time of the offline lookup: what training would have seen then is
what should be served now. On-demand views are not compared: their inputs are.
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

from services.features.sampling import SUBJECT, pseudonym, value_of
from services.features.store import FeastRepo, RegistryError, feast_quietly
from twinpath.common.v1 import value_pb2
from twinpath.features.v1 import features_pb2

_FLOAT_DIGITS = 1e-6
_DOUBLE_DIGITS = 1e-12


class SkewError(Exception):
    """The repo has no such feature service, or can't be read."""


@dataclass(slots=True)
class Served:
    """What was served of one feature, row by row; None is no value.

    `times` are event times in microseconds, 0 where there is none. `digits` is how far apart two
    equal numbers may be, relative to them.
    """

    view: str
    feature: str
    digits: float
    values: list[Any]
    times: list[int]


def served_now(answer: features_pb2.GetFeaturesResponse) -> list[Served]:
    """Return what an answer serves."""
    return [
        Served(
            column.view,
            column.feature,
            _FLOAT_DIGITS if column.values.HasField("floats") else _DOUBLE_DIGITS,
            [value_of(column, row) for row in range(len(column.statuses))],
            list(column.event_times_unix_us),
        )
        for column in answer.columns
    ]


def served_samples(
    folder: Path, service: str, entities: Sequence[Mapping[str, Any]], key: bytes
) -> tuple[list[Mapping[str, Any]], list[Served]]:
    """Return what samples say was served to some entities, and the entity of each row.

    Args:
        folder: Where the feature service keeps its samples.
        service: The feature service's name.
        entities: Whose samples are looked for, by their pseudonyms.
        key: The pseudonyms' key.

    Raises:
        SkewError: there are no samples of these entities.
    """
    names = {pseudonym(key, entity): entity for entity in entities}
    rows = [
        row
        for path in sorted((folder / service).glob("*.parquet"))
        for row in parquet.read_table(path).to_pylist()
        if row.get(SUBJECT) in names
    ]
    if not rows:
        raise SkewError(f"no samples of these entities in {folder / service}")
    found = []
    for name in dict.fromkeys(n for row in rows for n in row if f"{n}.status" in row):
        view, _, feature = name.partition("__")
        # A sample does not say what was a FLOAT.
        values = [row.get(name) for row in rows]
        times = [row.get(f"{view}.event_time_unix_us") or 0 for row in rows]
        found.append(Served(view, feature, _FLOAT_DIGITS, values, times))
    return [names[row[SUBJECT]] for row in rows], found


def join_keys(repo: Path, service: str) -> list[str]:
    """Return the join keys of a feature service.

    Raises:
        SkewError: the repo has no such feature service, or can't be read.
    """
    try:
        registry = FeastRepo(repo, settle_s=0.0).load()
    except RegistryError as error:
        raise SkewError(str(error)) from error
    assert registry is not None
    if service not in registry.services:
        raise SkewError(f"{repo} has no feature service {service!r}")
    return [key.name for key in registry.services[service].join_keys]


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
    served: Sequence[Served],
) -> list[Skew]:
    """Return the skew of each stored feature of a feature service.

    Args:
        repo: The Feast repo, whose offline store is asked.
        service: The feature service's name.
        entities: Who was served, row by row.
        served: What was served.

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
            columns = [column for column in served if column.view == shown]
            if not columns:
                continue  # the samples are older than this view
            offline = _offline(store, projection, entities, columns[0].times)
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
    column: Served,
    offline: Mapping[int, Mapping[str, Any]],
    entities: Sequence[Mapping[str, Any]],
) -> Skew:
    skew = Skew(f"{column.view}:{column.feature}")
    for number, time in enumerate(column.times):
        if time:
            there = offline.get(number, {}).get(column.feature)
            name = ", ".join(f"{key}={value}" for key, value in entities[number].items())
            skew.add(column.values[number], _python(there), name, column.digits)
    return skew


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
