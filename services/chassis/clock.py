"""Time, passed in, so that tests can hold it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the mesh knows about time."""

    def unix_us(self) -> int:
        """Return the wall clock in microseconds since 1970-01-01 UTC. It may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start. It never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def unix_us(self) -> int:
        """See `Clock`."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()
