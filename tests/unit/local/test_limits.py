"""The gate of a model: a limit, and a queue in the order of priority."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.errors import DeadlineExceededError, ResourceExhaustedError
from services.local.limits import Gate


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_most_urgent_goes_first_and_equals_in_order() -> None:
    """Interactive overtakes batch; nobody overtakes its equals."""
    gate = Gate(1, 10)
    order = []

    async def work(name: str, rank: int) -> None:
        async with gate.pass_through(rank, 10):
            order.append(name)
            await asyncio.sleep(0)

    async with gate.pass_through(1, 10):
        names = [("batch", 2), ("first", 0), ("second", 0), ("normal", 1)]
        tasks = []
        for name, rank in names:
            tasks.append(asyncio.create_task(work(name, rank)))
            await _turns()
    await asyncio.gather(*tasks)
    assert order == ["first", "second", "normal", "batch"]


async def test_a_full_queue_refuses_the_least_urgent() -> None:
    """A newcomer of the same rank is refused; a more urgent one takes the last one's place."""
    gate = Gate(1, 1)
    await gate.enter(1, 10)
    waiting = asyncio.create_task(gate.enter(2, 10))
    await _turns()
    with pytest.raises(ResourceExhaustedError, match="wait"):
        await gate.enter(2, 10)
    urgent = asyncio.create_task(gate.enter(0, 10))
    await _turns()
    with pytest.raises(ResourceExhaustedError):
        await waiting
    gate.leave()
    await urgent


async def test_who_waits_too_long_leaves_the_queue() -> None:
    """DEADLINE_EXCEEDED, and the place in the queue is free again."""
    gate = Gate(1, 1)
    await gate.enter(1, 10)
    for _ in range(2):
        with pytest.raises(DeadlineExceededError) as caught:
            await gate.enter(1, 0.001)
        assert caught.value.reason == "MODEL_QUEUE_TIMEOUT"
    gate.leave()
    await gate.enter(1, 0.1)


@settings(max_examples=60, deadline=None)
@given(
    plan=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["work", "cancel", "fail"])), max_size=20
    ),
    limit=st.integers(1, 3),
)
async def test_no_place_is_ever_lost_or_made(plan: list[tuple[int, str]], limit: int) -> None:
    """Whatever is cancelled or fails, and when: never more than the limit, all places come back."""
    gate = Gate(limit, 5)
    inside = 0

    async def work(rank: int, end: str) -> None:
        nonlocal inside
        async with gate.pass_through(rank, 10):
            inside += 1
            assert inside <= limit
            try:
                await asyncio.sleep(0)
                if end == "fail":
                    raise ValueError
            finally:
                inside -= 1

    tasks = []
    for rank, end in plan:
        task = asyncio.create_task(work(rank, end))
        tasks.append(task)
        if end == "cancel":
            await asyncio.sleep(0)
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [r for r in results if isinstance(r, AssertionError)]
    for _ in range(limit):
        await gate.enter(1, 0.1)
