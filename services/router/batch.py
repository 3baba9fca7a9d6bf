"""Many decisions in one call: each fails alone, and a batch does not crowd out other callers.

A batch is a queue of its own: some of its items are decided at once, and the hops behind make
model-sized batches of those (see chassis/coalesce.py). An item for which there is no place at the
moment waits for one until the call's time is up; only then is it refused. An item of priority BATCH
also leaves the way to more urgent requests (see spare.py).

After a cut call, ask again with the same keys: an item that has its OUTCOME is answered from the
log, and only the others are decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.errors import ResourceExhaustedError, ServiceError, to_status
from services.router.spare import Spare
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2

Decide = Callable[[router_pb2.InferRequest, Call, str], Awaitable[router_pb2.InferResponse]]

AT_ONCE = 32
_LOAD = "OVERLOADED"
_SHORTEST_WAIT_S = 0.01
_LONGEST_WAIT_S = 0.25


async def _nothing(_: Call) -> None:
    """Every item passes."""


class Batches:
    """Decides batches."""

    def __init__(
        self,
        decide: Decide,
        clock: Clock,
        *,
        at_once: int = AT_ONCE,
        first: Callable[[Call], Awaitable[None]] = _nothing,
        spare: Spare | None = None,
    ) -> None:
        """`decide(request, call, item_id)` makes one decision; `at_once` of a batch's run.

        `first` comes once before each item's decision; what it raises is the item's status. `spare`
        gives turns to items of priority BATCH.
        """
        self._spare = spare or Spare(clock)
        self._first = first
        self._decide = decide
        self._clock = clock
        self._at_once = at_once

    async def run(
        self, items: Sequence[router_pb2.BatchItem], call: Call
    ) -> list[router_pb2.BatchResult]:
        """Return one result for each item, in their order."""
        results = [router_pb2.BatchResult(id=item.id) for item in items]
        rest = iter(zip(items, results, strict=True))
        workers = min(self._at_once, len(items))
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(rest, call))
        return results

    async def _work(
        self,
        rest: Iterator[tuple[router_pb2.BatchItem, router_pb2.BatchResult]],
        call: Call,
    ) -> None:
        for item, result in rest:  # shared by all workers: each takes what comes next
            try:
                result.response.CopyFrom(await self._one(item, call))
            except ServiceError as error:
                result.status.CopyFrom(to_status(error))

    async def _one(self, item: router_pb2.BatchItem, call: Call) -> router_pb2.InferResponse:
        await self._first(call)
        if item.request.priority != context_pb2.PRIORITY_BATCH:
            return await self._once_there_is_a_place(item, call)
        # A little earlier than the call: what the others have got must still reach the caller.
        left = call.deadline - self._clock.monotonic() - _SHORTEST_WAIT_S
        async with self._spare.turn(left):
            return await self._once_there_is_a_place(item, call)

    async def _once_there_is_a_place(
        self, item: router_pb2.BatchItem, call: Call
    ) -> router_pb2.InferResponse:
        while True:
            try:
                return await self._decide(item.request, call, item.id)
            except ResourceExhaustedError as error:
                wait = min(max(error.retry_after or 0.0, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
                if error.reason != _LOAD or self._clock.monotonic() + wait >= call.deadline:
                    raise
            await asyncio.sleep(wait)
