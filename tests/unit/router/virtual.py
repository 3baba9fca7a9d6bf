"""An event loop whose time is virtual: when nothing is ready it jumps to the next timer.

A second costs nothing, and nothing outside can disturb the order. The order of what is ready at
the same moment is drawn from a seed, so that one seed is one interleaving, again and again, and
many seeds are many.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START_S = 1e9  # far above the machine's own clock: a door that looks at that one sees no deadline


class StuckError(AssertionError):
    """Nothing is ready and no timer runs: what is awaited will never come."""


class _Jumps:
    """Stands where a selector would: instead of waiting, it moves the time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        """Move the time on by `timeout`."""
        if timeout is None:
            raise StuckError("nothing will ever happen again")
        self._loop.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs coroutines in virtual time. No sockets, no threads, no signals."""

    _ready: deque[asyncio.Handle]  # the base's own: what runs next

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.now = START_S
        self._chance = random.Random(seed)
        self._selector = _Jumps(self)
        self._clock_resolution = 1e-6  # more than the distance of two floats up there

    def time(self) -> float:
        """The virtual time in seconds."""
        return self.now

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _run_once(self) -> None:
        if len(self._ready) > 1:
            order = list(self._ready)
            self._chance.shuffle(order)
            self._ready.clear()
            self._ready.extend(order)
        super()._run_once()  # type: ignore[misc]


class VirtualClock:
    """The services' clock on a virtual loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def unix_us(self) -> int:
        """The wall clock."""
        return round(self._loop.now * 1e6)

    def monotonic(self) -> float:
        """The steady clock."""
        return self._loop.now


def run(loop: VirtualLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run work to its end, and all that it left behind; the loop is closed then.

    Raises:
        StuckError: it waits for what will never come.
    """
    try:
        result = loop.run_until_complete(work)
        left = asyncio.all_tasks(loop)
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=3600))
        loop.run_until_complete(loop.shutdown_asyncgens())
        return result
    finally:
        loop.close()
