"""How many requests of one model are worth having in Triton at once. Pure.

Enough to keep the model busy, and no more: what waits inside Triton waits in the order in which it
came, and nobody can overtake there. What is over this limit waits at the gate (limits.py), where
the most urgent goes first and who has left is noticed.

Little's law both ways: while requests spend about as long in Triton as they do without a queue,
the limit may grow, if somebody waits at the gate; once they spend longer, it shrinks in proportion.
A queue of `slack_s` is always fine: it is shorter than any priority could notice, and so a fast
model is never held back.
"""

from __future__ import annotations

import math


class Pace:
    """One model's limit, which follows how long its requests take. One event loop owns it."""

    def __init__(
        self,
        maximum: int,
        *,
        initial: int = 16,
        minimum: int = 2,  # one that is computed, and one that is ready to be
        slack_s: float = 0.05,
        tolerance: float = 2.0,
        window_s: float = 0.1,
        window_count: int = 5,
    ) -> None:
        """Know nothing of the model yet.

        Args:
            maximum: of the limit; what is below and greater means the maximum.
            initial: limit.
            minimum: of the limit.
            slack_s: seconds in Triton that are never too long.
            tolerance: how many times the unqueued time is not yet a queue.
            window_s: the limit moves at most so often, in seconds.
            window_count: and from no fewer requests.
        """
        self._maximum = float(maximum)
        self._minimum = float(min(minimum, maximum))
        self._slack_s = slack_s
        self._tolerance = tolerance
        self._window = (window_s, window_count)
        self._limit = float(min(initial, maximum))
        self._unqueued_s: float | None = None
        self._since: float | None = None
        self._total_s = 0.0
        self._least_s = math.inf
        self._count = 0
        self._waited = False

    @property
    def limit(self) -> int:
        """How many may be in Triton now."""
        return int(self._limit)

    def waits(self) -> None:
        """Note that somebody had to wait: only then is there a reason to grow."""
        self._waited = True

    def took(self, now: float, seconds: float) -> None:
        """Learn from a request that spent so long in Triton, whether it was answered or timed out.

        Leave out those that failed for other reasons: that they were quick says nothing.
        """
        if self._since is None:
            self._since = now - seconds
        if now - seconds < self._since:
            return  # it came in under another limit: to heed it too would be to move twice
        self._total_s += seconds
        self._least_s = min(self._least_s, seconds)
        self._count += 1
        window_s, window_count = self._window
        if self._count >= window_count and now - self._since >= window_s:
            self._move(self._total_s / self._count, self._least_s)
            self._since, self._total_s, self._least_s = now, 0.0, math.inf
            self._count, self._waited = 0, False

    def _move(self, mean_s: float, least_s: float) -> None:
        if self._unqueued_s is None or least_s < self._unqueued_s:
            self._unqueued_s = least_s
        elif self.limit <= self._minimum:  # hardly a queue: if it is slower now, it is slower
            self._unqueued_s += 0.05 * (least_s - self._unqueued_s)
        fine_s = max(self._slack_s, self._tolerance * self._unqueued_s)
        if mean_s > fine_s:
            self._limit = max(self._minimum, self._limit * max(0.5, fine_s / mean_s))
        elif self._waited:
            self._limit = min(self._maximum, self._limit * 1.25 + 0.25)
