"""Coalescing: what is waiting while a call is in flight goes out as the next call's batch.

No timer and no added wait: an item that finds a free place goes out at once, alone; under load
the calls in flight are the clock, and batches grow by themselves. Lanes are independent (one for
each model and priority, say). A batch carries no caller's deadline or identity; each item carries
its own, and the flush function gets the latest deadline.

**Traces.** A batch runs in the trace of one of its items, its leader: the sampled one, else the
first. There is at most one sampled item in a batch, so that the spans behind the hop (a Triton's,
say, which can join one trace only) stand in the right trace; the rest ride along. Of several
sampled items that wait, each leads a batch of its own, and those go out together. A sampled
batch is one span in its leader's trace, with links to the other items.

Where all that is behind the hop is ours, `share_traces` spares those further batches: several
sampled items ride in one, and its span and all below it stand in the trace of each.

An item never waits for a timer, is answered once, with its own result or error. Items whose time
is up, or whose caller is gone, are not sent. When nobody waits for a batch any more, it is
cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind

from services.chassis.clock import Clock
from services.chassis.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    ServiceError,
)
from services.chassis.light_spans import LightSpan, share
from twinpath import telemetry as names

_tracer = trace.get_tracer(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Flight:
    """A batch under way. One that nobody waits for any more is cancelled."""

    task: asyncio.Task[Any] | None
    waiting: int

    def leave(self) -> None:
        """Note that a caller is gone."""
        self.waiting -= 1
        if not self.waiting and self.task is not None:
            self.task.cancel()


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    deadline: float
    since: float
    answer: asyncio.Future[Result]
    span: trace.Span
    weight: int
    flight: _Flight | None = None


@dataclass(slots=True)
class _Lane(Generic[Item, Result]):
    queue: deque[_Waiting[Item, Result]] = field(default_factory=deque)
    in_flight: int = 0
    sent: float = 0.0  # when the last of them was sent


Flush = Callable[[Sequence[Item], float], Awaitable[Sequence[Result | ServiceError]]]


class Coalescer(Generic[Item, Result]):
    """Turns single submissions into batches.

    `flush(items, time_left_s)` sends a batch and returns one result or error for each item, in
    order; what it raises fails every item of the batch. Bounds: `max_batch` items in a batch, of
    `max_weight` altogether as `weigh` tells (an item that is more than that is refused alone),
    `max_queue` waiting in a lane (more are RESOURCE_EXHAUSTED), `parallel` batches of a lane in
    flight. A call that takes longer than `overdue_s` is no clock any more: who comes then need not
    wait for it, and goes out beside it, up to `parallel_slow`. `observe(size, waited_s)` hears
    each batch's size and how long its first item waited. `name` is that of a batch's span.
    `share_traces`: a batch may hold several sampled items.
    """

    def __init__(
        self,
        flush: Flush[Item, Result],
        clock: Clock,
        *,
        max_batch: int = 64,
        max_weight: float = math.inf,
        weigh: Callable[[Item], int] = lambda _: 0,
        max_queue: int = 4096,
        parallel: int = 1,
        overdue_s: float = math.inf,
        parallel_slow: int = 16,
        observe: Callable[[int, float], None] = lambda _size, _waited_s: None,
        name: str = "hop",
        share_traces: bool = False,
    ) -> None:
        self._name = name
        self._flush = flush
        self._clock = clock
        self._max_batch = max_batch
        self._max_weight = max_weight
        self._weigh = weigh
        self._max_queue = max_queue
        self._parallel = parallel
        self._overdue_s = overdue_s
        self._parallel_slow = parallel_slow
        self._observe = observe
        self._share_traces = share_traces
        self._lanes: dict[Hashable, _Lane[Item, Result]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item, lane: Hashable, deadline: float) -> Result:
        """Send an item in the next batch of its lane and return its result.

        `deadline` is on the clock's monotonic scale.

        Raises:
            ServiceError: the item's own error, or the batch's.
            ResourceExhaustedError: too many items wait in the lane.
            InvalidArgumentError: the item is too large for any batch.
            DeadlineExceededError: its time ran out before it was sent.
        """
        weight = self._weigh(item)
        if weight > self._max_weight:
            raise InvalidArgumentError(
                "ITEM_TOO_LARGE", f"the item has {weight} bytes; {self._max_weight} are allowed"
            )
        place = self._lanes.get(lane)
        if place is None:
            place = self._lanes[lane] = _Lane()
        if len(place.queue) >= self._max_queue:
            raise ResourceExhaustedError(
                "HOP_QUEUE_FULL", f"{len(place.queue)} items wait for this hop", retry_after=0.1
            )
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        span = trace.get_current_span()
        now = self._clock.monotonic()
        waiting = _Waiting(item, deadline, now, answer, span, weight)
        place.queue.append(waiting)
        if place.in_flight < self._parallel or (
            now - place.sent >= self._overdue_s and place.in_flight < self._parallel_slow
        ):
            self._start(lane, place)
        try:
            return await answer
        except asyncio.CancelledError:
            if waiting.flight is not None:
                waiting.flight.leave()
            raise

    def _start(self, lane: Hashable, place: _Lane[Item, Result]) -> None:
        place.in_flight += 1
        # An empty context: the batch must not run as the caller that happened to start it.
        task = asyncio.get_running_loop().create_task(
            self._run(lane, place), context=contextvars.Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: Hashable, place: _Lane[Item, Result]) -> None:
        """Send what waits, and have those who come meanwhile sent next."""
        try:
            batches = self._take(place)
            if len(batches) == 1:
                await self._send(batches[0])
            elif batches:
                await asyncio.gather(*map(self._send, batches), return_exceptions=True)
        finally:
            place.in_flight -= 1
            if place.queue:
                # The next batch is another task: it has no caller either, and those who are
                # answered by now run before it and may come along.
                self._start(lane, place)
            elif not place.in_flight:
                self._lanes.pop(lane, None)

    def _take(self, place: _Lane[Item, Result]) -> list[list[_Waiting[Item, Result]]]:
        """Take what goes out now: one batch, or one for each sampled item and its share."""
        now = place.sent = self._clock.monotonic()
        batch: list[_Waiting[Item, Result]] = []
        leaders: list[_Waiting[Item, Result]] = []
        room = self._max_weight
        while place.queue and len(batch) + len(leaders) < self._max_batch:
            if place.queue[0].weight > room:
                break  # it leads the next batch
            waiting = place.queue.popleft()
            if waiting.answer.done():  # the caller is gone
                continue
            if waiting.deadline <= now:
                message = "the time was up before the item could be sent"
                waiting.answer.set_exception(DeadlineExceededError("EXPIRED_IN_QUEUE", message))
                continue
            room -= waiting.weight
            (leaders if _is_sampled(waiting) else batch).append(waiting)
        shares = self._share_traces and all(isinstance(w.span, LightSpan) for w in leaders)
        if len(leaders) < 2 or shares:
            taken = leaders + batch
            return [taken] if taken else []
        return [[leader, *batch[n :: len(leaders)]] for n, leader in enumerate(leaders)]

    async def _send(self, batch: list[_Waiting[Item, Result]]) -> None:
        now = self._clock.monotonic()
        self._observe(len(batch), now - min(waiting.since for waiting in batch))
        left = max(w.deadline for w in batch) - now
        flight = _Flight(asyncio.current_task(), sum(not w.answer.done() for w in batch))
        for waiting in batch:
            waiting.flight = flight
        try:
            results = await self._call(batch, left)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
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
        leader = batch[0].span
        here = trace.set_span_in_context(leader)
        if not leader.get_span_context().trace_flags.sampled:
            contexts.attach(here)  # never detached: the call is a task with a context of its own
            return await self._flush(items, left)
        others = [waiting.span.get_span_context() for waiting in batch[1:]]
        with _tracer.start_as_current_span(
            self._name,
            context=here,
            kind=SpanKind.INTERNAL,
            attributes={names.BATCH_SIZE: len(batch)},
            links=[Link(other) for other in others if other.is_valid],
        ) as span:
            share(span, (other for other in others if other.trace_flags.sampled))
            return await self._flush(items, left)

    async def close(self) -> None:
        """Cancel what is in flight; waiters are cancelled with it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _is_sampled(waiting: _Waiting[Item, Result]) -> bool:
    return waiting.span.get_span_context().trace_flags.sampled


def _fail(batch: Sequence[_Waiting[Item, Result]], error: ServiceError) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
