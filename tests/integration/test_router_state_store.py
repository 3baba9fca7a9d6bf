"""What the router keeps in a real state store: token buckets in Lua, answers, and outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from services.chassis.clock import SystemClock
from services.cli.embedded.ports import LOOPBACK, free_ports
from services.cli.embedded.valkey import Valkey
from services.router.state_store import StateStore

pytestmark = pytest.mark.integration


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A store of the test's own."""
    (port,) = free_ports(1)
    async with Valkey("state", tmp_path / "state", port) as server:
        yield server


@pytest.fixture
async def client(valkey: Valkey) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of it."""
    made = redis.asyncio.Redis(host=LOOPBACK, port=valkey.port, socket_timeout=1.0)
    yield made
    await made.aclose()


async def test_a_bucket_gives_its_burst_once_to_all_routers_together(
    client: redis.asyncio.Redis,
) -> None:
    """Fifty takes at once through two routers: the burst passes, the rest is told when to come."""
    stores = [StateStore(client, SystemClock()), StateStore(client, SystemClock())]
    await stores[0].take("twinpath:quota:warm", 1.0, 1.0)  # the script is known now
    takes = [stores[n % 2].take("twinpath:quota:t", 1 / 60, 10.0) for n in range(50)]
    waits = [wait for wait in await asyncio.gather(*takes) if wait is not None]
    assert waits.count(0.0) == 10
    assert all(0 < wait <= 60 for wait in waits if wait)
    assert 0 < await client.pttl("twinpath:quota:t") <= 601_000


async def test_a_bucket_fills_again(client: redis.asyncio.Redis) -> None:
    """After the time that it was told to wait, a caller finds a token."""
    store = StateStore(client, SystemClock())
    assert await store.take("twinpath:quota:f", 20.0, 1.0) == 0.0
    wait = await store.take("twinpath:quota:f", 20.0, 1.0)
    assert wait is not None
    assert 0 < wait <= 0.05
    await asyncio.sleep(0.1)
    assert await store.take("twinpath:quota:f", 20.0, 1.0) == 0.0


async def test_answers_are_kept_for_their_time(client: redis.asyncio.Redis) -> None:
    """Bytes come back as they were, and not after their time."""
    store = StateStore(client, SystemClock())
    await store.put("twinpath:answer:a", b"\x00\xff", 60)
    assert await store.get("twinpath:answer:a") == b"\x00\xff"
    assert 0 < await client.pttl("twinpath:answer:a") <= 60_000
    assert await store.get("twinpath:answer:b") is None


async def test_a_store_that_is_away_is_left_alone_for_a_while(
    valkey: Valkey, client: redis.asyncio.Redis
) -> None:
    """Nothing is raised: there is no answer, no token count, and soon no attempt either."""

    class Clock(SystemClock):
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    store = StateStore(client, clock)
    await store.put("twinpath:answer:a", b"x", 60)
    await valkey.stop()
    assert await store.get("twinpath:answer:a") is None
    assert await store.take("twinpath:quota:a", 1.0, 1.0) is None
    await store.put("twinpath:answer:a", b"y", 60)
    await valkey.start()
    assert await store.get("twinpath:answer:a") is None  # left alone still
    clock.now = 2.0
    await store.put("twinpath:answer:b", b"z", 60)
    assert await store.get("twinpath:answer:b") == b"z"
