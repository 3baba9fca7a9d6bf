"""Rows from a Redis stream: at least once, resumed after kill -9, poison set aside."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from services.cli.embedded.valkey import Valkey
from tests import support
from tests.unit.features import feast_repo
from twinpath.features.v1 import features_pb2_grpc

pytestmark = pytest.mark.integration

STREAM, GROUP = "rows", "twinpath-features"
NOW = datetime.now(tz=UTC).replace(microsecond=0)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A Valkey of the test's own."""
    async with feast_repo.valkey(tmp_path / "valkey") as running:
        yield running


@pytest.fixture
async def raw(server: Valkey) -> AsyncIterator[Any]:
    """A bare client, as a producer has it."""
    async with redis.Redis(port=server.port) as client:
        yield client


@pytest.fixture
def repo(tmp_path: Path, server: Valkey) -> feast_repo.Repo:
    """A repo with one push source."""
    from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
    from feast.types import Float64, Int64

    made = feast_repo.Repo(tmp_path / "repo", server.address)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    push = PushSource(name="clicks_push", batch_source=feast_repo.file_source("clicks"))
    clicks = FeatureView(
        name="clicks",
        entities=[user],
        schema=[Field(name="count", dtype=Int64), Field(name="rate", dtype=Float64)],
        source=push,
    )
    made.apply(user, push, clicks, FeatureService(name="clicks_v1", features=[clicks]))
    return made


def row(user: int, count: Any, when: datetime = NOW, **more: Any) -> dict[str, str]:
    """An entry."""
    columns = {"user_id": user, "event_timestamp": when.isoformat(), "count": count, "rate": 1}
    return {"source": "clicks_push", "row": json.dumps({**columns, **more})}


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(90):
        while not await true():  # noqa: ASYNC110 - the other end is Redis
            await asyncio.sleep(0.05)


def reads(client: feast_repo.Client, user: int, count: int) -> Callable[[], Awaitable[bool]]:
    """Tell whether a user's count is this one."""

    async def told() -> bool:
        answer = await client.get("clicks_v1", {"user_id": [user]})
        return list(answer.columns[0].values.int64s.values) == [count]

    return told


async def test_entries_become_rows_and_poison_is_set_aside(
    repo: feast_repo.Repo, server: Valkey, raw: Any, keys: support.MeshKeys
) -> None:
    """Good entries beside bad ones are written; each bad one says why; older ones do nothing."""
    early = NOW - timedelta(hours=1)
    await raw.xadd(STREAM, row(1, 5))  # before anybody listens
    options = {"stream": STREAM, "stream_claim_after_s": 0.5}
    async with feast_repo.serving(repo.folder, server.url, keys, **options) as client:
        await client.ready("clicks_v1")
        await raw.xadd(STREAM, row(1, 3, early))
        await raw.xadd(STREAM, row(2, "many"))
        await raw.xadd(STREAM, row(3, 7))
        await raw.xadd(STREAM, row(4, 7, colour="red"))
        await raw.xadd(STREAM, {"row": "[]"})
        await raw.xadd(STREAM, {**row(5, 1), "source": "nobody"})
        pushed = feast_repo.push(
            "clicks_push",
            {"user_id": [6, 7], "event_timestamp": [NOW, NOW], "count": [8, 9], "rate": [0.5, 1.0]},
        )
        await raw.xadd(STREAM, {"push": pushed.SerializeToString()})
        for user, count in ((1, 5), (3, 7), (6, 8), (7, 9)):
            await until(reads(client, user, count))

        async def all_settled() -> bool:
            groups = await raw.xinfo_groups(STREAM)
            dead = await raw.xlen(f"{STREAM}:dead")
            return dead == 4 and groups[0]["pending"] == 0 and groups[0]["lag"] == 0

        await until(all_settled)
    reasons = {
        fields[b"reason"].decode(): fields[b"message"].decode()
        for _, fields in await raw.xrange(f"{STREAM}:dead")
    }
    assert set(reasons) == {"PUSH_INVALID", "STREAM_ENTRY_INVALID", "PUSH_SOURCE_UNKNOWN"}
    assert "source" in reasons["STREAM_ENTRY_INVALID"]
    dead = await raw.xrange(f"{STREAM}:dead")
    assert all(b"entry_id" in fields for _, fields in dead)
    assert any(
        json.loads(f.get(b"row", b"0")) == json.loads(row(2, "many")["row"]) for _, f in dead
    )


async def test_what_was_read_before_kill_9_is_written_after_the_restart(
    repo: feast_repo.Repo, server: Valkey, raw: Any, keys: support.MeshKeys
) -> None:
    """Entries that a dead process had read and not acknowledged are written by the next one."""
    port = support.free_port()
    environment = {
        **os.environ,
        **keys.environment(),
        "TWINPATH_FEATURES_LISTEN": f"127.0.0.1:{port}",
        "TWINPATH_FEATURES_URL": server.url,
        "TWINPATH_FEATURES_REPO": str(repo.folder),
        "TWINPATH_FEATURES_STREAM": STREAM,
        "TWINPATH_FEATURES_STREAM_CLAIM_AFTER_S": "1",
    }

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-m", "services.features"),
            env=environment,
            cwd=support.ROOT,
            stderr=subprocess.DEVNULL,
        )

    # The writing script is refused, reading the stream is not: so it stays between the two.
    await raw.execute_command("ACL", "SETUSER", "default", "-evalsha")
    for user in range(1, 21):
        await raw.xadd(STREAM, row(user, user * 10))
    process = await start()
    try:

        async def all_read() -> bool:
            groups = await raw.xinfo_groups(STREAM)
            return bool(groups) and groups[0]["pending"] == 20

        await until(all_read)
        process.kill()
        await process.wait()
        await raw.execute_command("ACL", "SETUSER", "default", "+evalsha")
        assert (await raw.xpending(STREAM, GROUP))["pending"] == 20
        process = await start()
        async with support.client(f"127.0.0.1:{port}", keys.token("service:router")) as channel:
            client = feast_repo.Client(features_pb2_grpc.FeaturesStub(channel), None, channel)
            await client.ready("clicks_v1")
            for user in range(1, 21):
                await until(reads(client, user, user * 10))

            async def none_pending() -> bool:
                return bool((await raw.xpending(STREAM, GROUP))["pending"] == 0)

            await until(none_pending)
        assert await raw.xlen(f"{STREAM}:dead") == 0
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
