"""A limit on what is in flight, with a bounded queue in the order of priority.

Without it a burst for one model would wait inside Triton, where nobody can overtake and a caller
that leaves is not noticed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from types import TracebackType

from grpc import StatusCode

from services.chassis.errors import (
    DeadlineExceededError,
    ResourceExhaustedError,
    ServiceError,
)
from services.local.pace import Pace

_Waiter = tuple[int, int, "asyncio.Future[None]"]


class Gate:
    """Lets `limit` pass at once; up to `waiting` wait, the most urgent first.

    When the queue is full the least urgent is refused, which may be one that waits already.
    With a `pace` the limit is that of the pace, which learns from every turn's time by `now`.
    """

    def __init__(
        self,
        limit: int,
        waiting: int,
        *,
        pace: Pace | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._limit = limit
        self._pace = pace
        self._now = now
        self._inside = 0
        self._waiting = waiting
        self._queue: list[_Waiter] = []
        self._numbers = itertools.count()

    def pass_through(self, rank: int, timeout: float) -> Pass:
        """Return a context that waits for its turn. A lower rank is more urgent.

        Raises:
            ResourceExhaustedError: MODEL_BUSY, on entry.
            DeadlineExceededError: MODEL_QUEUE_TIMEOUT, after `timeout` seconds in the queue.
        """
        return Pass(self, rank, timeout)

    async def enter(self, rank: int, timeout: float) -> None:
        """Wait for a turn."""
        if self._has_room() and not self._queue:
            self._inside += 1
            return
        if self._pace is not None:
            self._pace.waits()
        self._make_room(rank)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (rank, next(self._numbers), turn)
        heapq.heappush(self._queue, waiter)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException as error:
            if waiter in self._queue:
                self._queue.remove(waiter)
                heapq.heapify(self._queue)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # the turn came, and nobody is there to take it
            if isinstance(error, TimeoutError):
                raise DeadlineExceededError(
                    "MODEL_QUEUE_TIMEOUT", "the time was up in the model's queue"
                ) from None
            raise

    def _make_room(self, rank: int) -> None:
        if len(self._queue) < self._waiting:
            return
        refused = ResourceExhaustedError(
            "MODEL_BUSY", "too many requests wait for this model", retry_after=0.1
        )
        last = max(self._queue, default=None)
        if last is None or last[0] <= rank:
            raise refused
        self._queue.remove(last)
        heapq.heapify(self._queue)
        last[2].set_exception(refused)

    def _has_room(self) -> bool:
        limit = self._limit if self._pace is None else self._pace.limit
        return self._inside < limit

    def now(self) -> float:
        """Return the time by which turns are measured, in seconds."""
        return self._now()

    def took(self, seconds: float, error: BaseException | None) -> None:
        """Let the pace learn from a turn; one that failed at once says nothing about load."""
        late = isinstance(error, ServiceError) and error.code is StatusCode.DEADLINE_EXCEEDED
        if self._pace is not None and (error is None or late):
            self._pace.took(self._now(), seconds)

    def leave(self) -> None:
        """End a turn; the next one comes, or as many as there is room for."""
        self._inside -= 1
        while self._queue and self._has_room():
            _, _, turn = heapq.heappop(self._queue)
            if not turn.done():
                self._inside += 1
                turn.set_result(None)


class Pass:
    """One turn at a gate."""

    __slots__ = ("_began", "_gate", "_rank", "_timeout")

    def __init__(self, gate: Gate, rank: int, timeout: float) -> None:
        self._gate = gate
        self._rank = rank
        self._timeout = timeout
        self._began = 0.0

    async def __aenter__(self) -> None:
        """Wait for the turn."""
        await self._gate.enter(self._rank, self._timeout)
        self._began = self._gate.now()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self._gate.took(self._gate.now() - self._began, error)
        self._gate.leave()
