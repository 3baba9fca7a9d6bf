"""Lanes: what waits while a request is in flight goes out as the next one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.local.lanes import Lanes, Road

ROAD = Road("m", 1, 4)


@dataclass
class Rider:
    """An item that knows its number."""

    number: int
    rows: int = 1
    sampled: bool = False
    ended: bool = False


class World:
    """Requests that last until they are let go."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.open: list[asyncio.Event] = []
        self.cancelled = 0
        self.lanes: Lanes[Rider] = Lanes(self.send)

    async def send(self, batch: list[Rider]) -> None:
        """Ask for a batch."""
        self.sent.append([item.number for item in batch])
        gate = asyncio.Event()
        self.open.append(gate)
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        for item in batch:
            item.ended = True

    async def done(self, request: int) -> None:
        """Let a request end."""
        self.open[request].set()
        await quiet()


async def quiet() -> None:
    """Let everything that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_waits_goes_as_the_next_request() -> None:
    """One goes at once; those that come meanwhile go together, in their order."""
    world = World()
    first = asyncio.create_task(world.lanes.go(ROAD, [Rider(0)]))
    await quiet()
    for number in (1, 2, 3):
        assert not await world.lanes.go(ROAD, [Rider(number)])
    assert world.sent == [[0]]
    await world.done(0)
    assert await first
    assert world.sent == [[0], [1, 2, 3]]


async def test_a_full_request_does_not_wait_for_a_place() -> None:
    """It could not grow; the rest waits on, and no request has more rows than the model takes."""
    world = World()
    world.lanes.wait(ROAD, [Rider(0)])
    await quiet()
    world.lanes.wait(ROAD, [Rider(n, rows=2) for n in range(1, 6)])
    await quiet()
    assert world.sent == [[0], [1, 2]]
    await world.done(0)
    await world.done(1)
    assert world.sent == [[0], [1, 2], [3, 4]]


async def test_a_recorded_trace_leads_and_meets_no_other() -> None:
    """Triton's spans can join one trace only."""
    world = World()
    world.lanes.wait(ROAD, [Rider(0)])
    await quiet()
    world.lanes.wait(ROAD, [Rider(1), Rider(2, sampled=True), Rider(3, sampled=True)])
    await world.done(0)
    assert world.sent[1] == [2, 1]
    await world.done(1)
    assert world.sent[2] == [3]


async def test_lanes_do_not_wait_for_each_other() -> None:
    """A slow request of one kind holds up no other kind."""
    world = World()
    world.lanes.wait(ROAD, [Rider(0)])
    world.lanes.wait(Road("other", 1, 4), [Rider(1)])
    await quiet()
    assert world.sent == [[0], [1]]


async def test_nobody_is_asked_for_who_has_left() -> None:
    """In the queue he is left out; a request that serves nobody else is cancelled, the next goes."""
    world = World()
    riders = [Rider(n) for n in range(4)]
    world.lanes.wait(ROAD, riders[:1])
    await quiet()
    world.lanes.wait(ROAD, riders[1:])
    riders[2].ended = True
    world.lanes.gone()
    await quiet()
    assert world.cancelled == 0
    riders[0].ended = True
    world.lanes.gone()
    await quiet()
    assert world.cancelled == 1
    assert world.sent == [[0], [1, 3]]
