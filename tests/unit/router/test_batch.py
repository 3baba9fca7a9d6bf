"""Batches: each item fails alone, waits for its place, and is decided once for its key."""

from __future__ import annotations

import asyncio

from services.chassis.call import Call, Identity
from services.chassis.errors import ResourceExhaustedError, UnavailableError
from services.router.batch import Batches
from tests.unit.router.ports import World, ask
from twinpath.router.v1 import router_pb2

TASK = "diabetes_progression"


def items(count: int, key: str = "") -> list[router_pb2.BatchItem]:
    """Items about as many patients."""
    return [
        router_pb2.BatchItem(id=f"i{n}", request=ask(TASK, patient=n, idempotency_key=key))
        for n in range(count)
    ]


async def test_items_fail_alone_and_keep_their_order() -> None:
    """Good and bad items have their own results, in the order in which they were asked."""
    world = World()
    await world.board.refresh()
    asked = items(5)
    asked[2].request.task = "nothing_here"
    asked[3].request.entity.clear()
    results = await Batches(world.pipeline.decide, world.clock).run(asked, world.call())
    assert [result.id for result in results] == [f"i{n}" for n in range(5)]
    assert [result.HasField("response") for result in results] == [True, True, False, False, True]
    assert [result.status.code for result in results] == [0, 0, 5, 3, 0]


async def test_a_large_batch_is_not_refused_for_its_own_size() -> None:
    """More items than there are places wait for theirs; no more than the bound run at once."""
    world = World()
    await world.board.refresh()
    running, most = 0, 0

    async def decide(
        request: router_pb2.InferRequest, call: Call, item: str
    ) -> router_pb2.InferResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        try:
            return await world.pipeline.decide(request, call, item)
        finally:
            running -= 1

    results = await Batches(decide, world.clock, at_once=16).run(items(300), world.call())
    assert all(result.HasField("response") for result in results)
    assert most == 16


async def test_an_item_without_a_place_waits_until_the_time_is_up() -> None:
    """A refusal for load is tried again, one for a quota or another reason is final."""
    world = World()
    refusals = 3

    async def busy(
        request: router_pb2.InferRequest, call: Call, item: str
    ) -> router_pb2.InferResponse:
        nonlocal refusals
        if item == "i1":
            raise ResourceExhaustedError("QUOTA_EXCEEDED", "no", retry_after=0.001)
        refusals -= 1
        if refusals >= 0:
            raise ResourceExhaustedError("OVERLOADED", "full", retry_after=0.001)
        return router_pb2.InferResponse(decision_id="d")

    batches = Batches(busy, world.clock)
    one, two = await batches.run(items(2), world.call())
    assert one.response.decision_id == "d"
    assert two.status.code == 8
    refusals = 10**9
    late = Call("/m", Identity("alice"), world.clock.now)
    assert (await batches.run(items(1), late))[0].status.code == 8


async def test_asking_again_repeats_unfinished_items_only() -> None:
    """With keys, items that have their OUTCOME are answered from the log, the others decided."""
    world = World()
    await world.board.refresh()
    broken = True

    async def decide(
        request: router_pb2.InferRequest, call: Call, item: str
    ) -> router_pb2.InferResponse:
        if broken and item in {"i1", "i3"}:
            raise UnavailableError("CUT", "the call was cut")
        return await world.pipeline.decide(request, call, item)

    batches = Batches(decide, world.clock)
    asked = items(4, key="batch-7")
    first = await batches.run(asked, world.call())
    broken = False
    again = await batches.run(asked, world.call())
    assert [result.response.repeated for result in again] == [True, False, True, False]
    assert len(world.local.items) == 4
    assert world.audit.kinds().count("OUTCOME") == 4
    assert first[0].response.outputs == again[0].response.outputs
