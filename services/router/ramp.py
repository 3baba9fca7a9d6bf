"""Slow start: a candidate that comes back gets its traffic bit by bit. Pure.

What was away is cold: its caches, its connections, its compiled code. All that waited for it would
throw it down again. So after a recovery only a few calls of it may be in flight, and twice as many
after each `double_s`; the rest goes where it went during the outage. The whole router's own limit
(limiter.py) is another thing: it must not shrink for all because one of many was away.
"""

from __future__ import annotations

import math


class Ramp:
    """How many calls of one candidate may be in flight. One event loop owns it."""

    __slots__ = ("_began", "_double_s", "_full", "_start")

    def __init__(self, *, start: int = 4, double_s: float = 0.5, full: int = 256) -> None:
        """Begin without a limit: what was never away is not cold.

        Args:
            start: calls in flight right after a recovery.
            double_s: after so many seconds it is twice as many.
            full: with so many the slow start is over.
        """
        self._start = start
        self._double_s = double_s
        self._full = full
        self._began = -math.inf

    def begin(self, now: float) -> None:
        """The candidate has come back."""
        self._began = now

    def limit(self, now: float) -> float:
        """Return how many calls may be in flight; infinite once the slow start is over."""
        doubled = (now - self._began) / self._double_s
        if doubled > math.log2(self._full / self._start):
            return math.inf
        return self._start * 2.0 ** math.floor(max(doubled, 0.0))
