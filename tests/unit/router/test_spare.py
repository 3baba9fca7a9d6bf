"""What a batch may take beside more urgent requests."""

from __future__ import annotations

import asyncio

import pytest

from services.chassis.call import Call
from services.chassis.errors import ResourceExhaustedError
from services.router.admission import Admission
from services.router.batch import Batches
from services.router.limiter import Limiter
from services.router.spare import Spare
from tests.unit.router.ports import Clock, World, ask
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2

TASK = "diabetes_progression"
INTERACTIVE, NORMAL, BATCH = (
    context_pb2.PRIORITY_INTERACTIVE,
    context_pb2.PRIORITY_NORMAL,
    context_pb2.PRIORITY_BATCH,
)


class Busy:
    """Decides, and remembers how many decisions ran at once."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def __call__(
        self, request: router_pb2.InferRequest, call: Call, item: str
    ) -> router_pb2.InferResponse:
        """Take a few turns of the loop."""
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(3):
            await asyncio.sleep(0)
        self.running -= 1
        return router_pb2.InferResponse(decision_id=item)


def items(priority: int, count: int = 20) -> list[router_pb2.BatchItem]:
    """Items of one priority."""
    return [
        router_pb2.BatchItem(id=str(n), request=ask(TASK, patient=n, priority=priority))
        for n in range(count)
    ]


async def most_at_once(spare: Spare, clock: Clock, priority: int) -> int:
    """Run a batch; return how many of its items were decided at once."""
    busy = Busy()
    batches = Batches(busy, clock, at_once=8, spare=spare)
    results = await batches.run(items(priority), World().call())
    assert [r.response.decision_id for r in results] == [r.id for r in results]
    return busy.most


async def test_beside_urgent_requests_a_batch_gets_one_place() -> None:
    """Items of priority BATCH are decided one after the other; none of them is lost."""
    clock = Clock()
    spare = Spare(clock)
    spare.urgent()
    assert await most_at_once(spare, clock, BATCH) == 1


async def test_alone_a_batch_is_not_held_back() -> None:
    """Before the first urgent request, and once the last one was long ago, all go at once."""
    clock = Clock()
    spare = Spare(clock, memory_s=1.0)
    assert await most_at_once(spare, clock, BATCH) == 8
    spare.urgent()
    clock.now += 1.0
    assert await most_at_once(spare, clock, BATCH) == 8


async def test_a_batch_that_somebody_waits_for_is_not_held_back() -> None:
    """What counts is the items' priority, not that they came in one call."""
    clock = Clock()
    spare = Spare(clock)
    spare.urgent()
    assert await most_at_once(spare, clock, NORMAL) == 8


async def test_who_waits_in_line_goes_once_the_urgent_requests_end() -> None:
    """The line dissolves at the next turn; nobody waits for the ones before him any more."""
    clock = Clock()
    spare = Spare(clock)
    spare.urgent()
    inside = 0
    stay = asyncio.Event()

    async def one() -> None:
        nonlocal inside
        async with spare.turn(60.0):
            inside += 1
            await stay.wait()

    async with asyncio.TaskGroup() as group:
        async with spare.turn(60.0):
            for _ in range(5):
                group.create_task(one())
            await asyncio.sleep(0.01)
            assert inside == 0
            clock.now += 10
        while inside < 5:  # noqa: ASYNC110 - a count, not an event
            await asyncio.sleep(0)
        stay.set()


async def test_an_item_without_a_turn_is_refused_in_time() -> None:
    """Its time up in the line, it hears that it was the load; the others' places are not lost."""
    spare = Spare(Clock())
    spare.urgent()
    async with spare.turn(60.0):
        with pytest.raises(ResourceExhaustedError) as refused:
            async with spare.turn(0.0):
                pass
    assert refused.value.reason == "OVERLOADED"
    async with spare.turn(60.0):
        pass


@pytest.mark.parametrize(("priority", "most"), [(INTERACTIVE, 1), (NORMAL, 1), (0, 1), (BATCH, 8)])
async def test_every_more_urgent_request_is_heard_of(priority: int, most: int) -> None:
    """Admission tells of each request but those of priority BATCH, also of one it refuses."""
    clock = Clock()
    spare = Spare(clock)
    admission = Admission(Limiter(), clock, spare)
    with admission(ask(TASK, priority=priority)):
        pass
    assert await most_at_once(spare, clock, BATCH) == most


async def test_a_place_stands_empty_for_as_long_as_it_was_taken() -> None:
    """So batches have the machine half of the time at most; the next in line does not follow on."""
    clock = Clock()
    spare = Spare(clock, memory_s=1e6)
    spare.urgent()
    async with spare.turn(60.0):
        clock.now += 0.2
    with pytest.raises(ResourceExhaustedError):
        async with spare.turn(0.0):
            pass
    async with spare.turn(60.0):
        pass
