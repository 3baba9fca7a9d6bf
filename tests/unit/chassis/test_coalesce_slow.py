"""A slow call is no clock: who comes late into it does not wait for its end."""

from __future__ import annotations

import asyncio

from services.chassis.coalesce import Coalescer
from tests.unit.chassis.test_coalesce import FAR, Clock, Gate, settle


async def test_an_item_does_not_wait_for_a_call_that_is_overdue() -> None:
    """Within the time a call may take, items wait for it; after that they go out beside it."""
    gate, clock = Gate(), Clock()
    hop = Coalescer(gate, clock, overdue_s=0.05)
    asked = []
    for item, at in ((0, 0.0), (2, 0.04), (4, 0.06), (6, 0.07)):
        clock.now = at
        asked.append(asyncio.ensure_future(hop.submit(item, "lane", FAR)))
        await settle()
    assert gate.batches == [[0], [2, 4]]
    gate.open.set()
    assert await asyncio.gather(*asked) == [0, 20, 40, 60]
    assert gate.batches == [[0], [2, 4], [6]]


async def test_calls_beside_a_slow_one_are_bounded() -> None:
    """However slow, no more than `parallel_slow` calls of a lane are in flight."""
    gate, clock = Gate(), Clock()
    hop = Coalescer(gate, clock, overdue_s=0.05, parallel_slow=3)
    asked = []
    for number in range(6):
        clock.now = float(number)
        asked.append(asyncio.ensure_future(hop.submit(2 * number, "lane", FAR)))
        await settle()
    assert gate.batches == [[0], [2], [4]]
    gate.open.set()
    await asyncio.gather(*asked)
