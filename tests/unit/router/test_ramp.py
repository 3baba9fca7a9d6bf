"""Slow start: a candidate that comes back gets its traffic bit by bit."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from services.chassis.errors import UnavailableError
from services.router.ramp import Ramp
from tests.unit.router.ports import World, answer, failure
from twinpath.common.v1 import context_pb2

DOWN = UnavailableError("TRITON_UNAVAILABLE", "down")


def test_the_limit_doubles_until_the_slow_start_is_over() -> None:
    """Four at once, twice as many each half second, then as many as there are."""
    ramp = Ramp()
    assert ramp.limit(0.0) == math.inf
    ramp.begin(10.0)
    assert [ramp.limit(10 + t) for t in (0, 0.4, 0.5, 1.0, 2.9)] == [4, 4, 8, 16, 128]
    assert ramp.limit(13.1) == math.inf


async def test_a_candidate_that_has_healed_is_not_thrown_down_again() -> None:
    """Right after its breaker closed, few of many calls at once go to it; seconds later all do."""
    world = World()
    world.local.behave = lambda item: failure(item, DOWN)
    for _ in range(8):
        await world.decide()
    world.clock.now += 1
    world.local.behave = None
    for _ in range(4):  # probes
        world.clock.now += 0.01
        await world.decide()

    async def slowly(item: Any) -> Any:
        await asyncio.sleep(0.01)
        return answer(item)

    world.local.behave = world.remote.behave = slowly
    replies = await asyncio.gather(*(world.decide() for _ in range(30)))
    local = sum(r.answered_by.path == context_pb2.PATH_LOCAL for r in replies)
    assert local == 4
    world.clock.now += 5
    replies = await asyncio.gather(*(world.decide() for _ in range(30)))
    assert all(r.answered_by.path == context_pb2.PATH_LOCAL for r in replies)


async def test_a_path_that_comes_back_starts_slowly_too() -> None:
    """Also where no breaker had time to open."""
    world = World()
    await world.decide()
    world.local.down = True
    await world.board.refresh()
    world.local.down = False
    await world.board.refresh()
    task = world.catalog.tasks["diabetes_progression"]
    small = world.board.candidates(task)[0]
    permits = [world.board.begin(small) for _ in range(4)]
    assert None not in permits
    assert world.board.state(small).slow_start


async def test_a_slow_start_refuses_nobody_who_has_no_other() -> None:
    """Where no other candidate is left, a slow start does not make the outage longer."""
    world = World()
    await world.board.refresh()
    task = world.catalog.tasks["tumour_triage"]
    small = world.board.candidates(task)[0]
    world.board.gauge(small).ramp.begin(world.clock.now)
    for _ in range(10):
        world.board.begin(small)
    reply = await world.decide("tumour_triage")
    assert reply.answered_by.id == small.id
