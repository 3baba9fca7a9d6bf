"""Lanes: items of one kind that wait while requests of theirs are with Triton, and go as the next.

No timer and no added wait: items that find a free place go at once; under load the requests in
flight are the clock, and batches grow by themselves. A lane has a place for each instance of its
model, and one more for a batch that is full: it could not grow by waiting, and the instance that is
done first finds it there.

A batch has at most one item of a trace that is recorded: it leads, so that Triton's own spans join
its trace, and its neighbours ride along.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Rider(Protocol):
    """What a lane needs to know of an item.

    Attributes:
        rows: Rows of its input.
        sampled: Its trace is being recorded.
        ended: Nobody waits for it any more.
    """

    rows: int
    sampled: bool
    ended: bool


Item = TypeVar("Item", bound=Rider)


@dataclass(frozen=True, slots=True)
class Road:
    """Of which kind a lane's items are, and what it carries.

    Attributes:
        kin: What its items have in common.
        places: Requests in flight at once.
        most_rows: Rows of a request.
    """

    kin: Hashable
    places: int
    most_rows: int


class _Lane(Generic[Item]):
    __slots__ = ("in_flight", "queue", "road")

    def __init__(self, road: Road) -> None:
        self.road = road
        self.queue: deque[Item] = deque()
        self.in_flight = 0

    def has_place(self) -> bool:
        """Tell whether a request may go now."""
        spare = self.in_flight - self.road.places
        return spare < 0 or (spare == 0 and len(self.queue) >= self.road.most_rows)


class Lanes(Generic[Item]):
    """All lanes. `send` asks for a batch, and returns when each of its items has ended."""

    def __init__(self, send: Callable[[list[Item]], Awaitable[None]]) -> None:
        self._send = send
        self._lanes: dict[Hashable, _Lane[Item]] = {}
        self._batches: dict[asyncio.Task[None], list[Item]] = {}

    async def go(self, road: Road, items: Sequence[Item]) -> bool:
        """Send the items in the caller's own task if they can go now, alone and in one request.

        Returns:
            False: they wait in their lane, and end by themselves.
        """
        lane = self._lane(road)
        if (
            lane.queue
            or lane.in_flight >= road.places
            or sum([item.rows for item in items]) > road.most_rows
            or sum([item.sampled for item in items]) > 1
        ):
            self.wait(road, items)
            return False
        lane.in_flight += 1
        try:
            await self._send(sorted(items, key=_leads) if len(items) > 1 else list(items))
        finally:
            self._left(lane)
        return True

    def wait(self, road: Road, items: Sequence[Item]) -> None:
        """Put the items into their lane; they end by themselves."""
        lane = self._lane(road)
        lane.queue.extend(items)
        self._start(lane)

    def gone(self) -> None:
        """Some items have ended before their time: cancel the requests that serve nobody else."""
        for task, batch in list(self._batches.items()):
            if all(item.ended for item in batch):
                task.cancel()

    def _lane(self, road: Road) -> _Lane[Item]:
        lane = self._lanes.get(road.kin)
        if lane is None:
            lane = self._lanes[road.kin] = _Lane(road)
        return lane

    def _left(self, lane: _Lane[Item]) -> None:
        lane.in_flight -= 1
        if lane.queue:
            self._start(lane)
        if not lane.in_flight and not lane.queue:
            self._lanes.pop(lane.road.kin, None)

    def _start(self, lane: _Lane[Item]) -> None:
        """Send batches while there are items and places."""
        while lane.has_place() and (batch := self._take(lane)):
            lane.in_flight += 1
            # An empty context: a batch must not run as the caller that happened to start it.
            task = asyncio.get_running_loop().create_task(
                self._run(lane, batch), context=contextvars.Context()
            )
            self._batches[task] = batch
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._batches.pop(task, None)
        if not task.cancelled():
            task.exception()  # `send` tells its items; what else it says stands in the log

    async def _run(self, lane: _Lane[Item], batch: list[Item]) -> None:
        try:
            await self._send(batch)
        finally:
            self._left(lane)

    def _take(self, lane: _Lane[Item]) -> list[Item]:
        """Take the next batch, in order; the one whose trace is recorded comes first."""
        batch: list[Item] = []
        rows = 0
        led = False
        queue = lane.queue
        while queue:
            item = queue[0]
            if not item.ended:
                if batch and (rows + item.rows > lane.road.most_rows or (led and item.sampled)):
                    break
                rows += item.rows
                led = led or item.sampled
                batch.append(item)
            queue.popleft()
        if led:
            batch.sort(key=_leads)
        return batch


def _leads(item: Rider) -> bool:
    return not item.sampled
