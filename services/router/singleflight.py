"""Single flight: of equal calls that overlap, one is made and all get its answer.

For the response cache: a popular key that has just expired costs one model call, not one for each
caller that is waiting. The call runs in a task of its own, so that it belongs to nobody: a caller
that leaves takes nothing from the others, and when the last one has left, the call is cancelled.
Its own time-out must be the call's business, and a caller's the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Flight(Generic[Answer]):
    task: asyncio.Task[Answer]
    waiting: int = 0


class SingleFlight(Generic[Key, Answer]):
    """Joins equal calls. Belongs to one event loop."""

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        """Start with nothing in flight."""
        self._flights: dict[Key, _Flight[Answer]] = {}

    def __len__(self) -> int:
        """How many calls are in flight."""
        return len(self._flights)

    async def run(self, key: Key, call: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """Return the answer for `key`, and whether this caller's own `call` made it.

        An error reaches all who wait, and is not kept: the next caller calls anew.
        """
        flight = self._flights.get(key)
        mine = flight is None
        if flight is None:
            flight = _Flight(asyncio.ensure_future(_made(call)))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._landed(key, flight))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), mine
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._landed(key, flight)  # who comes now must not join a call being cancelled
                flight.task.cancel()

    def _landed(self, key: Key, flight: _Flight[Answer]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


async def _made(call: Callable[[], Awaitable[Answer]]) -> Answer:
    return await call()
