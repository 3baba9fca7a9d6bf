"""The reads' own connection, on a real Valkey: order, cuts, time-outs, and who gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis.asyncio as redis

from services.chassis.redis_lane import Lane
from services.cli.embedded.valkey import Valkey
from tests.unit.features import feast_repo

pytestmark = pytest.mark.integration


def echo(*texts: str) -> bytes:
    """Commands whose replies are these texts."""
    return b"".join(b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(t), t.encode()) for t in texts)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A Valkey of the test's own."""
    async with feast_repo.valkey(tmp_path / "valkey") as running:
        yield running


@asynccontextmanager
async def lane(server: Valkey, timeout_s: float = 5.0) -> AsyncIterator[tuple[Lane, Any]]:
    """A lane, and a client beside it."""
    async with redis.Redis(port=server.port) as pool, redis.Redis(port=server.port) as beside:
        opened = Lane(pool.connection_pool, timeout_s)
        try:
            yield opened, beside
        finally:
            await opened.close()


async def test_everyone_gets_their_own_replies(server: Valkey) -> None:
    """Many ask at once over one connection, small and large; errors stand among the replies."""
    async with lane(server) as (opened, beside):

        async def ask(number: int) -> None:
            texts = [f"{number}-{n}" * (1 if n else 5_000) for n in range(number % 5 + 1)]
            replies = await opened.ask(echo(*texts) + b"*1\r\n$4\r\nNOPE\r\n", len(texts) + 1)
            assert [reply.decode() for reply in replies[:-1]] == texts
            assert isinstance(replies[-1], redis.ResponseError)

        await asyncio.gather(*(ask(number) for number in range(100)))
        assert len(await beside.client_list()) == 2


async def test_who_gives_up_shifts_nobodys_replies(server: Valkey) -> None:
    """The replies that nobody waits for any more are dropped, and no others."""
    async with lane(server) as (opened, beside):
        await opened.ask(echo("warm"), 1)
        await beside.client_pause(300)
        given_up = asyncio.create_task(opened.ask(echo("a", "b"), 2))
        stays = asyncio.create_task(opened.ask(echo("c"), 1))
        await asyncio.sleep(0.05)
        given_up.cancel()
        assert await stays == [b"c"]
        assert await opened.ask(echo("d"), 1) == [b"d"]


async def test_a_connection_that_was_cut_is_made_anew(server: Valkey) -> None:
    """A read over a connection that has died is asked again, over a new one."""
    async with lane(server) as (opened, beside):
        for _ in range(3):
            assert await opened.ask(echo("a"), 1) == [b"a"]
            await beside.client_kill_filter(_type="normal", skipme=True)
            answers = await asyncio.gather(*(opened.ask(echo("b"), 1) for _ in range(20)))
            assert answers == [[b"b"]] * 20


async def test_no_answer_in_time_ends_the_connection(server: Valkey) -> None:
    """Whoever waits is told; replies that come too late meet nobody, and the next read works."""
    async with lane(server, timeout_s=0.2) as (opened, beside):
        await opened.ask(echo("warm"), 1)
        await beside.client_pause(600)
        waiting = [asyncio.create_task(opened.ask(echo("late"), 1)) for _ in range(5)]
        for answer in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(answer, redis.TimeoutError)
        await beside.client_unpause()
        assert await opened.ask(echo("new"), 1) == [b"new"]


async def test_no_server_is_an_error_for_all_who_ask(server: Valkey) -> None:
    """All get the error of one attempt to connect; with the server back, the lane works."""
    async with lane(server) as (opened, _):
        await opened.ask(echo("warm"), 1)
        await server.stop()
        answers = await asyncio.gather(
            *(opened.ask(echo("a"), 1) for _ in range(10)), return_exceptions=True
        )
        assert all(isinstance(answer, redis.ConnectionError) for answer in answers)
        await server.start()
        assert await opened.ask(echo("b"), 1) == [b"b"]
