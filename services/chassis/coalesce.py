"""Coalescing: what is waiting while a call is in flight goes out as the next call's batch.

No timer and no added wait: an item that finds a free place goes out at once, alone; under load
the calls in flight are the clock, and batches grow by themselves. Lanes are independent (one for
each model and priority, say). A batch carries nothing of any caller's context: no trace, no
deadline, no identity; each item carries its own, and the flush function gets the latest deadline.

A batch is one span, with links to the spans of its items, sampled like any trace of its own.

An item never waits for a timer, is answered once, with its own result or error. Items whose time
is up, or whose caller is gone, are not sent. When nobody waits for a batch any more, it is
cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from opentelemetry import trace
from opentelemetry.trace import SpanContext, SpanKind

from services.chassis.clock import Clock
from services.chassis.errors import (
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    ServiceError,
)

_tracer = trace.get_tracer(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    deadline: float
    since: float
    answer: asyncio.Future[Result]
    link: SpanContext


@dataclass(slots=True)
class _Lane(Generic[Item, Result]):
    queue: deque[_Waiting[Item, Result]] = field(default_factory=deque)
    in_flight: int = 0


Flush = Callable[[Sequence[Item], float], Awaitable[Sequence[Result | ServiceError]]]


class Coalescer(Generic[Item, Result]):
    """Turns single submissions into batches.

    `flush(items, time_left_s)` sends a batch and returns one result or error for each item, in
    order; what it raises fails every item of the batch. Bounds: `max_batch` items in a batch,
    `max_queue` waiting in a lane (more are RESOURCE_EXHAUSTED), `parallel` batches of a lane in
    flight. `observe(size, waited_s)` hears each batch's size and how long its first item waited.
    `name` is that of a batch's span.
    """

    def __init__(
        self,
        flush: Flush[Item, Result],
        clock: Clock,
        *,
        max_batch: int = 64,
        max_queue: int = 4096,
        parallel: int = 1,
        observe: Callable[[int, float], None] = lambda _size, _waited_s: None,
        name: str = "hop",
    ) -> None:
        self._name = name
        self._flush = flush
        self._clock = clock
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._parallel = parallel
        self._observe = observe
        self._lanes: dict[Hashable, _Lane[Item, Result]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item, lane: Hashable, deadline: float) -> Result:
        """Send an item in the next batch of its lane and return its result.

        `deadline` is on the clock's monotonic scale.

        Raises:
            ServiceError: the item's own error, or the batch's.
            ResourceExhaustedError: too many items wait in the lane.
            DeadlineExceededError: its time ran out before it was sent.
        """
        place = self._lanes.get(lane)
        if place is None:
            place = self._lanes[lane] = _Lane()
        if len(place.queue) >= self._max_queue:
            raise ResourceExhaustedError(
                "HOP_QUEUE_FULL", f"{len(place.queue)} items wait for this hop", retry_after=0.1
            )
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        link = trace.get_current_span().get_span_context()
        place.queue.append(_Waiting(item, deadline, self._clock.monotonic(), answer, link))
        if place.in_flight < self._parallel:
            self._start(lane, place)
        return await answer

    def _start(self, lane: Hashable, place: _Lane[Item, Result]) -> None:
        place.in_flight += 1
        # An empty context: the batch must not run as the caller that happened to start it.
        task = asyncio.get_running_loop().create_task(
            self._run(lane, place), context=contextvars.Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: Hashable, place: _Lane[Item, Result]) -> None:
        """Send batches until nobody waits."""
        try:
            while batch := self._take(place):
                await self._send(batch)
        finally:
            place.in_flight -= 1
            if place.queue:  # something came while the last batch was ending
                self._start(lane, place)
            elif not place.in_flight:
                self._lanes.pop(lane, None)

    def _take(self, place: _Lane[Item, Result]) -> list[_Waiting[Item, Result]]:
        now = self._clock.monotonic()
        batch: list[_Waiting[Item, Result]] = []
        while place.queue and len(batch) < self._max_batch:
            waiting = place.queue.popleft()
            if waiting.answer.done():  # the caller is gone
                continue
            if waiting.deadline <= now:
                message = "the time was up before the item could be sent"
                waiting.answer.set_exception(DeadlineExceededError("EXPIRED_IN_QUEUE", message))
                continue
            batch.append(waiting)
        return batch

    async def _send(self, batch: list[_Waiting[Item, Result]]) -> None:
        now = self._clock.monotonic()
        self._observe(len(batch), now - batch[0].since)
        left = max(w.deadline for w in batch) - now
        call = asyncio.ensure_future(self._call(batch, left))
        alive = len(batch)

        def one_less(answer: asyncio.Future[Result]) -> None:
            nonlocal alive
            alive -= 1
            if not alive and answer.cancelled():
                call.cancel()

        for waiting in batch:
            waiting.answer.add_done_callback(one_less)
        try:
            results = await call
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            if not call.cancelled():
                call.cancel()
                raise
            return
        except ServiceError as error:
            _fail(batch, error)
            return
        except Exception as error:  # noqa: BLE001 - every waiter must hear something
            _fail(batch, InternalError("FLUSH_FAILED", f"sending failed: {type(error).__name__}"))
            return
        if len(results) != len(batch):
            message = f"{len(results)} results came for {len(batch)} items"
            _fail(batch, InternalError("WRONG_RESULT_COUNT", message))
            return
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(result, ServiceError):
                waiting.answer.set_exception(result)
            else:
                waiting.answer.set_result(result)

    async def _call(
        self, batch: list[_Waiting[Item, Result]], left: float
    ) -> Sequence[Result | ServiceError]:
        items = [waiting.item for waiting in batch]
        with _tracer.start_as_current_span(self._name, kind=SpanKind.CLIENT) as span:
            if span.get_span_context().trace_flags.sampled:
                for waiting in batch:
                    if waiting.link.is_valid:
                        span.add_link(waiting.link)
            return await self._flush(items, left)

    async def close(self) -> None:
        """Cancel what is in flight; waiters are cancelled with it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _fail(batch: Sequence[_Waiting[Item, Result]], error: ServiceError) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
