"""Push over a real Valkey: which row wins, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from services.cli.embedded.valkey import Valkey
from tests import support
from tests.unit.features import feast_repo
from tests.unit.features.rides import NOW, by_name, repo_with_rows
from twinpath.common.v1 import decision_pb2, value_pb2
from twinpath.features.v1 import features_pb2

pytestmark = pytest.mark.integration

S = decision_pb2.FeatureStatus


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A Valkey of the test's own."""
    async with feast_repo.valkey(tmp_path / "valkey") as running:
        yield running


@pytest.fixture
def repo(tmp_path: Path, server: Valkey) -> feast_repo.Repo:
    """A repo with rows."""
    return repo_with_rows(tmp_path / "repo", server.address)


@pytest_asyncio.fixture
async def client(
    repo: feast_repo.Repo, server: Valkey, keys: support.MeshKeys
) -> AsyncIterator[feast_repo.Client]:
    """The service over that repo, ready."""
    async with feast_repo.serving(repo.folder, server.url, keys) as served:
        await served.ready()
        yield served


def push_request(**columns: Any) -> features_pb2.PushRequest:
    """Build rows for the push source of `rides`."""
    return features_pb2.PushRequest(
        push_source="rides_push",
        columns=[feast_repo.column(name, values) for name, values in columns.items()],
    )


async def test_push_never_lets_an_older_row_win(
    client: feast_repo.Client, repo: feast_repo.Repo
) -> None:
    """Newer rows replace, older and equally old ones don't, within a batch too; Feast agrees."""
    old, new = NOW - timedelta(seconds=5), NOW + timedelta(microseconds=1)
    answer = await client.stub.Push(
        push_request(
            driver_id=[9, 9, 9, 1, 8],
            count=[1, 2, 3, 4, 5],
            rate=[1.0, 2.0, 3.0, 4.0, 5.0],
            town=["a", "b", "c", "d", "e"],
            event_timestamp=[old, new, old, NOW, datetime(1950, 1, 1, tzinfo=UTC)],
        )
    )
    assert (answer.written, answer.older) == (3, 2)
    vector = await client.get("rides_v1", {"driver_id": [9, 1, 8]})
    columns = by_name(vector)
    assert list(columns["rides__count"].values.int64s.values) == [2, -5, 5]
    assert columns["rides__count"].event_times_unix_us[0] == feast_repo.micros(new)
    feast = repo.feast.get_online_features(
        features=["rides:town"], entity_rows=[{"driver_id": 9}, {"driver_id": 8}]
    )
    assert feast.to_dict()["town"] == ["b", "e"]
    again = await client.stub.Push(
        push_request(
            driver_id=[8, 9], count=[6, 7], rate=[0.0, 0.0], town=["f", "g"],
            event_timestamp=[
                datetime(1950, 1, 1, tzinfo=UTC) + timedelta(microseconds=1),
                datetime(1950, 1, 1, tzinfo=UTC),
            ],
        )
    )  # fmt: skip
    assert (again.written, again.older) == (1, 1)


async def test_push_names_everything_that_is_wrong(client: feast_repo.Client) -> None:
    """Missing, unknown, null and wrongly typed columns are named at once; nothing is written."""
    nameless = value_pb2.Column(name="driver_id")
    nameless.mixed.values.add(int64_value=77)
    nameless.mixed.values.add()
    error = await support.refusal(
        client.stub.Push(
            push_request(
                rate=["x", "y"], town=["a", "b"], wheels=[3, 4], driver_id=nameless,
                event_timestamp=[NOW, NOW],
            )
        )
    )  # fmt: skip
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PUSH_INVALID")
    text = " | ".join(f"{field}: {why}" for field, why in error.violations)
    assert "rate: is strings; DOUBLE needs" in text
    assert "wheels" in text
    assert "count (INT64) is missing" in text
    assert "driver_id: a value is null" in text
    request = push_request(driver_id=[1])
    request.push_source = "nobody"
    error = await support.refusal(client.stub.Push(request))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "PUSH_SOURCE_UNKNOWN")
    answer = await client.get("rides_v1", {"driver_id": [77]})
    assert by_name(answer)["rides__rate"].statuses[0] == S.FEATURE_STATUS_ABSENT_ENTITY


async def test_concurrent_pushes_end_with_the_newest(client: feast_repo.Client) -> None:
    """Whatever the order of arrival, the newest row stays."""
    import random

    order = list(range(60))
    random.Random(7).shuffle(order)
    pushes = [
        client.stub.Push(
            push_request(
                driver_id=[50], count=[n], rate=[0.0], town=[""],
                event_timestamp=[NOW + timedelta(seconds=n)],
            )
        )
        for n in order
    ]  # fmt: skip
    await asyncio.gather(*pushes)
    answer = await client.get("rides_v1", {"driver_id": [50]})
    assert by_name(answer)["rides__count"].values.int64s.values[0] == 59
