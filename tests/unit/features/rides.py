"""A small Feast repo about drivers and their rides, which several suites read and write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.unit.features import feast_repo
from twinpath.features.v1 import features_pb2

NOW = datetime.now(tz=UTC).replace(microsecond=0)


def definitions() -> list[Any]:
    """Two views of drivers with a push source, an on-demand view, and a feature service."""
    from feast import (
        Entity,
        FeatureService,
        FeatureView,
        Field,
        PushSource,
        RequestSource,
        ValueType,
    )
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Array, Float32, Float64, Int64, String

    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    push = PushSource(name="rides_push", batch_source=feast_repo.file_source("rides"))
    rides = FeatureView(
        name="rides",
        entities=[driver],
        ttl=timedelta(days=1),
        schema=[
            Field(name="count", dtype=Int64),
            Field(name="rate", dtype=Float64, tags={"data_class": "public"}),
            Field(name="town", dtype=String, tags={"pii": "place"}),
        ],
        source=push,
        tags={"data_class": "confidential"},
    )
    profile = FeatureView(
        name="profile",
        entities=[driver],
        ttl=timedelta(0),
        schema=[
            Field(name="score", dtype=Float32),
            Field(name="embedding", dtype=Array(Float64)),
        ],
        source=feast_repo.file_source("profile"),
        tags={"data_class": "very secret"},
    )
    ask = RequestSource(name="ask", schema=[Field(name="bonus", dtype=Float64)])

    @on_demand_feature_view(
        sources=[rides, ask],
        schema=[Field(name="boosted", dtype=Float64)],
        mode="python",
    )
    def boost(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"boosted": [r + b for r, b in zip(inputs["rate"], inputs["bonus"], strict=True)]}

    service = FeatureService(name="drivers_v1", features=[rides, profile, boost])
    only_rides = FeatureService(name="rides_v1", features=[rides])
    return [driver, push, rides, profile, ask, boost, service, only_rides]


def repo_with_rows(folder: Path, address: str) -> feast_repo.Repo:
    """A repo with rows: driver 1 fresh, driver 2 with stale rides and no profile."""
    made = feast_repo.Repo(folder, address)
    made.apply(*definitions())
    from feast.protos.feast.types.Value_pb2 import DoubleList, Value

    def driver(number: int) -> dict[str, Any]:
        return {"driver_id": Value(int64_val=number)}

    made.write(
        "rides",
        driver(1),
        {
            "count": Value(int64_val=-5),
            "rate": Value(double_val=0.5),
            "town": Value(string_val="Ulm"),
        },
        NOW,
    )
    made.write(
        "profile",
        driver(1),
        {
            "score": Value(float_val=0.1),
            "embedding": Value(double_list_val=DoubleList(val=[1.0, 2.0])),
        },
        NOW - timedelta(days=900),
    )
    made.write(
        "rides",
        driver(2),
        {"count": Value(), "rate": Value(double_val=1.5)},
        NOW - timedelta(days=2),
    )
    return made


def by_name(answer: features_pb2.GetFeaturesResponse) -> dict[str, Any]:
    """Columns by their full names."""
    return {c.values.name: c for c in answer.columns}
