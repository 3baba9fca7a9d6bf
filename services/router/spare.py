"""What a batch may take while more urgent requests come in: a decision at a time.

A router is one event loop, and the services behind it share their machine with it. The limiter
looks at how long requests take on average, and lets that double before it acts; whoever waits for
an answer notices much earlier. So beside requests of a higher priority the items of batches get a
place of their own and no more, and wait in line for it; and it stands empty for as long as it was
taken, so that the machine is theirs half of the time at most. Alone they go as the limiter lets
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.chassis.clock import Clock
from services.chassis.errors import ResourceExhaustedError


class Spare:
    """The place, or places. One object for all batches; one event loop owns it."""

    def __init__(self, clock: Clock, places: int = 1, *, memory_s: float = 1.0) -> None:
        """Begin without any urgent request.

        Args:
            clock: tells when a request came in.
            places: decisions at once, of all batches together, beside urgent requests.
            memory_s: seconds after the last urgent request for which others are expected.
        """
        self._clock = clock
        self._memory_s = memory_s
        self._places = asyncio.Semaphore(places)
        self._expected_until = float("-inf")

    def urgent(self) -> None:
        """Note that a request came in that is more urgent than a batch."""
        self._expected_until = self._clock.monotonic() + self._memory_s

    def _alone(self) -> bool:
        return self._clock.monotonic() >= self._expected_until

    @asynccontextmanager
    async def turn(self, timeout: float) -> AsyncIterator[None]:
        """Hold a place for one item of a batch, once there is one, if it needs one.

        Raises:
            ResourceExhaustedError: OVERLOADED, none was free for `timeout` seconds.
        """
        if self._alone():
            yield
            return
        try:
            async with asyncio.timeout(timeout):
                await self._places.acquire()
        except TimeoutError:
            raise ResourceExhaustedError(
                "OVERLOADED", "more urgent requests come in all the time", retry_after=1.0
            ) from None
        if self._alone():  # by now: the others in line need not wait either
            self._places.release()
            yield
            return
        began = self._clock.monotonic()
        try:
            yield
        finally:
            took = self._clock.monotonic() - began
            asyncio.get_running_loop().call_later(took, self._places.release)
