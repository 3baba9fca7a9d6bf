"""The feature service over a real Valkey and real Feast repos."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli.embedded.valkey import Valkey
from tests import support
from tests.unit.features import feast_repo
from tests.unit.features.rides import NOW, by_name, definitions, repo_with_rows
from twinpath.common.v1 import context_pb2, decision_pb2, value_pb2
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


async def test_gives_values_statuses_and_times(client: feast_repo.Client) -> None:
    """Present, stale, null, absent feature and absent entity are told apart, row by row."""
    answer = await client.get("drivers_v1", {"driver_id": [1, 2, 3]}, {"bonus": [0.25, 1.0, 1.0]})
    columns = by_name(answer)
    assert [c.values.name for c in answer.columns] == [
        "rides__count", "rides__rate", "rides__town",
        "profile__score", "profile__embedding", "boost__boosted",
    ]  # fmt: skip
    count = columns["rides__count"]
    assert list(count.values.int64s.values) == [-5, 0, 0]
    assert list(count.statuses) == [
        S.FEATURE_STATUS_PRESENT,
        S.FEATURE_STATUS_NULL,
        S.FEATURE_STATUS_ABSENT_ENTITY,
    ]
    assert list(columns["rides__rate"].statuses)[1] == S.FEATURE_STATUS_STALE
    assert list(columns["rides__town"].statuses)[1] == S.FEATURE_STATUS_ABSENT_FEATURE
    assert list(count.event_times_unix_us) == [
        feast_repo.micros(NOW),
        feast_repo.micros(NOW - timedelta(days=2)),
        0,
    ]
    assert list(columns["profile__score"].statuses) == [
        S.FEATURE_STATUS_PRESENT,  # no ttl: never stale
        S.FEATURE_STATUS_ABSENT_ENTITY,
        S.FEATURE_STATUS_ABSENT_ENTITY,
    ]
    vector = columns["profile__embedding"].values.mixed.values[0]
    assert [v.double_value for v in vector.list_value.values] == [1.0, 2.0]
    boosted = columns["boost__boosted"]
    assert list(boosted.values.doubles.values) == [0.75, 2.5, 0.0]
    assert list(boosted.statuses) == [
        S.FEATURE_STATUS_PRESENT,
        S.FEATURE_STATUS_STALE,
        S.FEATURE_STATUS_ABSENT_ENTITY,
    ]
    assert all(not row.HasField("status") for row in answer.rows)


async def test_data_class_and_pii_come_from_tags(client: feast_repo.Client) -> None:
    """A field's tag beats its view's; an unknown class counts as restricted."""
    answer = await client.get("drivers_v1", {"driver_id": [1]}, {"bonus": [0.0]})
    columns = by_name(answer)
    assert columns["rides__count"].data_class == context_pb2.DATA_CLASS_CONFIDENTIAL
    assert columns["rides__rate"].data_class == context_pb2.DATA_CLASS_PUBLIC
    assert columns["rides__town"].pii == "place"
    assert columns["profile__score"].data_class == context_pb2.DATA_CLASS_RESTRICTED
    assert answer.data_class == context_pb2.DATA_CLASS_RESTRICTED
    rides = await client.get("rides_v1", {"driver_id": [1]})
    assert rides.data_class == context_pb2.DATA_CLASS_CONFIDENTIAL


async def test_describes(client: feast_repo.Client) -> None:
    """Describe names keys, request fields, features, ttl and versions."""
    answer = await client.stub.Describe(features_pb2.DescribeRequest(feature_service="drivers_v1"))
    (found,) = answer.feature_services
    assert [(f.name, f.value_type) for f in found.join_keys] == [("driver_id", "INT64")]
    assert [(f.name, f.value_type) for f in found.request_fields] == [("bonus", "DOUBLE")]
    assert [f.ttl_seconds for f in found.features] == [86_400] * 3 + [0] * 3
    assert {v.view for v in found.views} == {"rides", "profile", "boost"}
    everything = await client.stub.Describe(features_pb2.DescribeRequest())
    assert [s.name for s in everything.feature_services] == ["drivers_v1", "rides_v1"]
    vector = await client.get("rides_v1", {"driver_id": [1]})
    assert vector.lineage.registry_version == answer.registry_version != ""


async def test_names_everything_that_is_wrong(client: feast_repo.Client) -> None:
    """All wrong columns are named at once, each with what it should be."""
    call = client.get("drivers_v1", {"driver_id": ["one"], "car_id": [1]}, {"bonsu": [1.0]})
    error = await support.refusal(call)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "FEATURE_REQUEST_INVALID"
    texts = dict(error.violations)
    assert texts["join_keys[0]"] == "driver_id: is strings; INT64 needs int64s"
    assert "car_id" in texts["join_keys[1].name"]
    assert "bonsu" in texts["request_fields[0].name"]
    assert texts["request_fields"] == "bonus (DOUBLE) is missing"


async def test_unknown_feature_service(client: feast_repo.Client) -> None:
    """An unknown feature service is NOT_FOUND, in both calls."""
    error = await support.refusal(client.get("nobody", {"driver_id": [1]}))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "FEATURE_SERVICE_UNKNOWN")
    call = client.stub.Describe(features_pb2.DescribeRequest(feature_service="nobody"))
    assert (await support.refusal(call)).code is grpc.StatusCode.NOT_FOUND


async def test_one_bad_row_fails_alone(client: feast_repo.Client) -> None:
    """In a mixed column, a key of the wrong type fails its own row and no other."""
    mixed = value_pb2.Column()
    mixed.mixed.values.add(int64_value=1)
    mixed.mixed.values.add(string_value="2")
    mixed.mixed.values.add()
    mixed.mixed.values.add(int64_value=2)
    answer = await client.get("rides_v1", {"driver_id": mixed})
    codes = [row.status.code for row in answer.rows]
    bad = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert codes == [0, bad, bad, 0]
    rate = by_name(answer)["rides__rate"]
    assert list(rate.values.doubles.values) == [0.5, 0.0, 0.0, 1.5]
    assert list(rate.statuses)[1] == S.FEATURE_STATUS_UNSPECIFIED


async def test_a_key_of_another_kind_fails_alone(
    client: feast_repo.Client, server: Valkey, repo: feast_repo.Repo
) -> None:
    """What is no hash, or no feature value, under a row's key is that row's DATA_LOSS."""
    import redis

    from services.features.definitions import KeyPart
    from services.features.keys import feature_field, key_encoder

    (key7, key8) = key_encoder([KeyPart("driver_id", "driver_id", "INT64")], "test")(
        {"driver_id": [7, 8]}, 2
    )
    raw = redis.Redis.from_url(server.url)
    raw.set(key7, "not a hash")
    raw.hset(key8, feature_field("rides", "town"), b"\xff\xff\xff")
    raw.close()
    answer = await client.get("rides_v1", {"driver_id": [7, 1, 8]})
    codes = [row.status.code for row in answer.rows]
    assert codes == [grpc.StatusCode.DATA_LOSS.value[0], 0, grpc.StatusCode.DATA_LOSS.value[0]]
    assert by_name(answer)["rides__rate"].values.doubles.values[1] == 0.5


async def test_a_half_written_row_is_never_fresh(client: feast_repo.Client, server: Valkey) -> None:
    """Values without a time are stale where there is a ttl; a time without values is no value."""
    import redis
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.timestamp_pb2 import Timestamp

    from services.features.definitions import KeyPart
    from services.features.keys import feature_field, key_encoder, time_field

    (key7, key8) = key_encoder([KeyPart("driver_id", "driver_id", "INT64")], "test")(
        {"driver_id": [7, 8]}, 2
    )
    raw = redis.Redis.from_url(server.url)
    raw.hset(key7, feature_field("rides", "rate"), Value(double_val=2.5).SerializeToString())
    now = Timestamp(seconds=int(NOW.timestamp())).SerializeToString()
    raw.hset(key8, time_field("rides"), now)
    raw.close()
    answer = await client.get("rides_v1", {"driver_id": [7, 8]})
    assert [row.status.code for row in answer.rows] == [0, 0]
    rate = by_name(answer)["rides__rate"]
    assert list(rate.statuses) == [S.FEATURE_STATUS_STALE, S.FEATURE_STATUS_ABSENT_FEATURE]
    assert list(rate.values.doubles.values) == [2.5, 0.0]
    assert list(rate.event_times_unix_us) == [0, feast_repo.micros(NOW)]


async def test_oversize_strings_are_refused(client: feast_repo.Client) -> None:
    """A service's name, a row's id, a key: each is named, and none of it is in the message."""
    long = value_pb2.Column()
    long.mixed.values.add(string_value="x" * (1 << 20) + "y")
    wrong = [
        feast_repo.request("s" * 257, {"driver_id": [1]}),
        feast_repo.request("rides_v1", {"driver_id": long}),
        feast_repo.request("rides_v1", {"driver_id": [1]}),
    ]
    wrong[2].rows[0].id = "i" * 10_000
    for request, field in zip(wrong, ("feature_service", "join_keys", "rows"), strict=True):
        error = await support.refusal(client.stub.GetFeatures(request))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT, field
        assert any(name.startswith(field) for name, _ in error.violations)
        assert "xxx" not in str(error)


async def test_redis_down_and_back(
    client: feast_repo.Client, server: Valkey, repo: feast_repo.Repo
) -> None:
    """Without Redis: UNAVAILABLE with a reason, NOT_SERVING; with it again, all is well."""
    health = health_pb2_grpc.HealthStub(client.channel)
    server.kill()
    await server.stop()
    error = await support.refusal(client.get("rides_v1", {"driver_id": [1]}))
    assert (error.code, error.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "FEATURE_STORE_UNAVAILABLE",
    )
    await _health(health, health_pb2.HealthCheckResponse.NOT_SERVING)
    async with Valkey("features", repo.folder / "again", server.port):
        await _health(health, health_pb2.HealthCheckResponse.SERVING)
        answer = await client.get("rides_v1", {"driver_id": [1]})
        assert by_name(answer)["rides__rate"].statuses[0] == S.FEATURE_STATUS_ABSENT_ENTITY


async def _health(stub: Any, wanted: int) -> None:
    while (await stub.Check(health_pb2.HealthCheckRequest())).status != wanted:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_a_slow_redis_keeps_the_callers_deadline(
    client: feast_repo.Client, server: Valkey
) -> None:
    """While Redis hangs, a caller gets DEADLINE_EXCEEDED or UNAVAILABLE, and then answers again."""
    server.signal(signal.SIGSTOP)
    try:
        error = await support.refusal(client.get("rides_v1", {"driver_id": [1]}, timeout=0.3))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        error = await support.refusal(client.get("rides_v1", {"driver_id": [1]}, timeout=8))
        assert error.reason == "FEATURE_STORE_UNAVAILABLE"
    finally:
        server.signal(signal.SIGCONT)
    answer = await client.get("rides_v1", {"driver_id": [1]})
    assert by_name(answer)["rides__rate"].values.doubles.values[0] == 0.5


async def test_starts_without_redis_and_registry(tmp_path: Path, keys: support.MeshKeys) -> None:
    """With nothing there the service starts, says NOT_SERVING, and recovers by itself."""
    port = support.free_port()
    folder = tmp_path / "repo"
    async with feast_repo.serving(folder, f"redis://127.0.0.1:{port}/0", keys) as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        error = await support.refusal(client.get("rides_v1", {"driver_id": [1]}))
        assert (error.code, error.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "REGISTRY_UNAVAILABLE",
        )
        await _health(health, health_pb2.HealthCheckResponse.NOT_SERVING)
        async with Valkey("features", tmp_path / "valkey", port) as server:
            feast_repo.Repo(folder, server.address).apply(*definitions())
            await _health(health, health_pb2.HealthCheckResponse.SERVING)
            await client.get("rides_v1", {"driver_id": [1]})


async def test_registry_changes_are_live_and_a_broken_one_changes_nothing(
    client: feast_repo.Client, repo: feast_repo.Repo
) -> None:
    """`feast apply` is in force soon; a broken registry leaves the last good one; it recovers."""
    from feast import FeatureService

    rides = repo.feast.get_feature_view("rides")
    before = await client.get("rides_v1", {"driver_id": [1]})
    repo.apply(FeatureService(name="rides_v2", features=[rides[["rate"]]]))
    await client.ready("rides_v2")
    answer = await client.get("rides_v2", {"driver_id": [1]})
    assert [c.feature for c in answer.columns] == ["rate"]
    assert answer.lineage.registry_version != before.lineage.registry_version
    assert answer.lineage.views == before.lineage.views

    file = repo.folder / "registry.db"
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    await asyncio.sleep(0.7)
    await client.get("rides_v2", {"driver_id": [1]})
    file.unlink()
    await asyncio.sleep(0.5)
    await client.get("rides_v2", {"driver_id": [1]})
    assert not file.exists()
    file.write_bytes(good)
    repo.apply(FeatureService(name="rides_v3", features=[rides[["count"]]]))
    await client.ready("rides_v3")


async def test_view_versions_follow_their_definition(
    client: feast_repo.Client, repo: feast_repo.Repo
) -> None:
    """A changed ttl gives a view, and views made from it, a new version, and others none."""
    before = await client.get("drivers_v1", {"driver_id": [1]}, {"bonus": [0.0]})
    old = {v.view: v.version_hash for v in before.lineage.views}
    rides = repo.feast.get_feature_view("rides")
    rides.ttl = timedelta(days=3)
    repo.apply(rides)
    while True:
        answer = await client.get("drivers_v1", {"driver_id": [1]}, {"bonus": [0.0]})
        new = {v.view: v.version_hash for v in answer.lineage.views}
        if new != old:
            break
        await asyncio.sleep(0.05)
    assert new["profile"] == old["profile"]
    assert new["rides"] != old["rides"]
    assert new["boost"] != old["boost"]


async def test_many_callers_at_once_get_their_own_rows(client: feast_repo.Client) -> None:
    """Calls that share round trips get exactly what they would get alone."""
    calls = [client.get("rides_v1", {"driver_id": [n % 4]}) for n in range(200)]
    for number, answer in enumerate(await asyncio.gather(*calls)):
        rate = by_name(answer)["rides__rate"]
        expected = {1: 0.5, 2: 1.5}.get(number % 4)
        found = rate.values.doubles.values[0] if expected is not None else None
        assert found == expected


async def test_a_row_whose_time_is_up_is_told_so(client: feast_repo.Client) -> None:
    """A row with no time left is DEADLINE_EXCEEDED; its neighbour is answered."""
    ask = feast_repo.request("rides_v1", {"driver_id": [1, 1]})
    ask.rows[0].time_left_us = 1
    answer = await client.stub.GetFeatures(ask)
    assert [row.status.code for row in answer.rows] == [
        grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
        0,
    ]


@pytest.mark.parametrize("rows", [0, 10_001, 100_000])
async def test_no_rows_and_too_many_rows_are_refused(client: feast_repo.Client, rows: int) -> None:
    """At the door, with the field named."""
    call = client.stub.GetFeatures(
        feast_repo.request("rides_v1", {"driver_id": [1] * rows}, rows=rows)
    )
    error = await support.refusal(call)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert any(field.startswith("rows") for field, _ in error.violations)


async def test_nan_in_a_request_field_is_null_to_views(client: feast_repo.Client) -> None:
    """As in Feast; a view that can't take null fails that row alone, and says which view."""
    answer = await client.get("drivers_v1", {"driver_id": [1, 1]}, {"bonus": [float("nan"), 1.0]})
    code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert [row.status.code for row in answer.rows] == [code, 0]
    assert by_name(answer)["boost__boosted"].values.doubles.values[1] == 1.5


async def test_a_full_batch_is_answered(client: feast_repo.Client) -> None:
    """Ten thousand rows, the largest batch, in one call."""
    answer = await client.get("rides_v1", {"driver_id": [1, 2] * 5_000}, timeout=30)
    assert list(by_name(answer)["rides__rate"].values.doubles.values) == [0.5, 1.5] * 5_000
