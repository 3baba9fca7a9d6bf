"""Triton's replicas at work: silence is noted, and calls move on, as far as the budget goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.chassis.clock import SystemClock
from services.chassis.errors import ServiceError, UnavailableError
from services.local.exchange import Answer, Ask
from services.local.faults import TritonError
from services.local.fleet import Fleet
from services.local.replicas import STRIKES, Balancer, Replica, RetryBudget
from services.local.spec import ModelSpec


class Hanging:
    """A server that takes connections and says nothing."""

    shares = True

    def __init__(self) -> None:
        self.pinged = asyncio.Event()
        self.dropped = 0

    async def live(self, _: float) -> bool:
        """Never answer."""
        self.pinged.set()
        await asyncio.Event().wait()
        return True

    def drop(self) -> None:
        """Count."""
        self.dropped += 1


class Models:
    """Has described everything."""

    loaded = True

    async def refresh(self) -> None:
        """Know nothing new."""


async def test_a_ping_that_is_given_up_counts_as_unanswered() -> None:
    """Also where the ping's own time would have ended a moment later; then its calls end."""
    server: Any = Hanging()
    replica = Replica("127.0.0.1:1", server)
    replica.answered()
    models: Any = Models()
    fleet = Fleet(Balancer([replica]), models, SystemClock(), ping_timeout_s=60, refresh_s=60)
    for strike in range(STRIKES):
        assert (replica.up, server.dropped) == (True, 0), strike
        server.pinged.clear()
        ping = asyncio.create_task(fleet.ping())
        await server.pinged.wait()
        ping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ping
    assert (replica.up, server.dropped) == (False, 1)


SPEC = ModelSpec("m", "1", (), (), 0)
ANSWER = Answer("1", [], 0, 0)


class Scripted:
    """A server whose calls fail as if it had gone, after so many chunks of a stream."""

    shares = True

    def __init__(self, *, well: bool, chunks: int = 0) -> None:
        self.well = well
        self.chunks = chunks
        self.calls = 0

    def _gone(self) -> TritonError:
        return TritonError(UnavailableError("TRITON_UNAVAILABLE", "gone"), elsewhere=True)

    async def infer(self, *_: object) -> Answer:
        """Answer once all that come now are there."""
        self.calls += 1
        await asyncio.sleep(0)
        if not self.well:
            raise self._gone()
        return ANSWER

    async def stream(self, *_: object) -> AsyncIterator[Answer]:
        """Answer in two chunks."""
        self.calls += 1
        for _chunk in range(2 if self.well else self.chunks):
            yield ANSWER
        if not self.well:
            raise self._gone()


def fleet_of(*servers: Scripted, budget: RetryBudget | None = None) -> Fleet:
    """A fleet of these servers, all up and with the model; the first one is picked first."""
    replicas = []
    for number, server in enumerate(servers):
        client: Any = server
        replica = Replica(f"r{number}", client)
        replica.models = frozenset({("m", "1")})
        replica.answered()
        replica.failures = number
        replicas.append(replica)
    models: Any = Models()
    balancer = Balancer(replicas, budget)
    return Fleet(balancer, models, SystemClock(), ping_timeout_s=60, refresh_s=60)


def deadline() -> float:
    """A time that no test reaches."""
    return SystemClock().monotonic() + 60


async def test_calls_that_fall_with_a_replica_are_answered_by_another() -> None:
    """All of them, also when there are many more than the budget's least."""
    bad, good = Scripted(well=False), Scripted(well=True)
    fleet = fleet_of(bad, good)
    asked = [fleet.infer(Ask(SPEC, "x", []), deadline(), ()) for _ in range(128)]
    assert await asyncio.gather(*asked) == [ANSWER] * 128
    assert bad.calls > 20


async def test_without_budget_there_is_no_second_try() -> None:
    """Neither of a call nor of a stream: under a general outage it would double the load."""
    budget = RetryBudget(share=0, least=1)
    assert budget.spend()
    bad, good = Scripted(well=False), Scripted(well=True)
    fleet = fleet_of(bad, good, budget=budget)
    with pytest.raises(ServiceError, match="gone"):
        await fleet.infer(Ask(SPEC, "x", []), deadline(), ())
    assert (bad.calls, good.calls) == (1, 0)
    bad, good = Scripted(well=False), Scripted(well=True)
    fleet = fleet_of(bad, good, budget=budget)
    with pytest.raises(ServiceError, match="gone"):
        await chunks_of(fleet)
    assert (bad.calls, good.calls) == (1, 0)


async def chunks_of(fleet: Fleet) -> int:
    """Read a stream; returns the number of its chunks."""
    async with fleet.stream(Ask(SPEC, "x", []), deadline(), ()) as answers:
        return len([answer async for answer in answers])


async def test_a_stream_moves_on_before_its_first_chunk_and_not_after() -> None:
    """What is out can't be taken back."""
    bad, good = Scripted(well=False), Scripted(well=True)
    assert await chunks_of(fleet_of(bad, good)) == 2
    assert (bad.calls, good.calls) == (1, 1)
    bad, good = Scripted(well=False, chunks=1), Scripted(well=True)
    with pytest.raises(ServiceError, match="gone"):
        await chunks_of(fleet_of(bad, good))
    assert (bad.calls, good.calls) == (1, 0)
