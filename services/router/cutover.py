"""Cutover: when a candidate's traffic goes to the others first, by criteria of the catalog. Pure.

The breaker sees what is broken and stops asking it. Cutover is the operator's own word about what
is not good enough, well before that: too many failures, or too slow, over a window and for so long.
A candidate that is cut over is tried after all those that are not, and is nobody's first choice; it
stays the last resort. That changes an order only: whom policy excludes stays excluded.

The return is automatic: after `return_after_s` it has its place again, on trial. If it misses the
criteria again soon, the next absence is twice as long, up to `return_max_s`.
"""

from __future__ import annotations

import math
from collections import deque

from pydantic import BaseModel, ConfigDict, Field, model_validator

_LOOK_S = 0.1  # the criteria are looked at no more often
_MEMORY = 512  # calls


class Criteria(BaseModel):
    """What a candidate has to keep to; one of the first two at least. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    failure_rate: float | None = Field(
        default=None, gt=0, lt=1, description="share of calls that may fail"
    )
    p95_s: float | None = Field(
        default=None, gt=0, description="of all calls; failures count as slower than any answer"
    )
    minimum_calls: int = Field(default=20, ge=1, le=_MEMORY, description="before anything is said")
    window_s: float = Field(default=10.0, gt=0, description="how far back calls count")
    for_s: float = Field(default=0.0, ge=0, description="missed without a break for so long")
    return_after_s: float = Field(default=10.0, gt=0, description="the first absence")
    return_max_s: float = Field(default=120.0, gt=0, description="the longest")

    @model_validator(mode="after")
    def _says_something(self) -> Criteria:
        if self.failure_rate is None and self.p95_s is None:
            raise ValueError("cutover needs failure_rate or p95_s")
        if self.return_max_s < self.return_after_s:
            raise ValueError("cutover: return_max_s is less than return_after_s")
        return self


class Cutover:
    """Whether one candidate is cut over. Not thread-safe; one event loop owns it."""

    __slots__ = (
        "_away_until",
        "_calls",
        "_config",
        "_level",
        "_looked",
        "_missed_since",
        "_reason",
    )

    def __init__(self, config: Criteria) -> None:
        """Start in place."""
        self._config = config
        self._calls: deque[tuple[float, bool, float]] = deque(maxlen=_MEMORY)
        self._looked = -math.inf
        self._missed_since: float | None = None
        self._away_until = -math.inf
        self._reason = ""
        self._level = 0

    def away(self, now: float) -> str:
        """Return why the candidate is cut over; empty: it is in its place."""
        return self._reason if now < self._away_until else ""

    def observe(self, now: float, *, ok: bool, seconds: float) -> None:
        """Learn from a call that has ended. Calls made as a last resort are not held against it."""
        if now < self._away_until:
            return
        self._calls.append((now, ok, seconds))
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        reason = self._missed(now)
        if not reason:
            self._missed_since = None
            return
        if self._missed_since is None:
            self._missed_since = now
        if now - self._missed_since >= self._config.for_s:
            self._cut(now, reason)

    def forget(self) -> None:
        """Forget the calls so far; who is cut over stays so until its time."""
        self._calls.clear()
        self._missed_since = None

    def _missed(self, now: float) -> str:
        """Return which criterion is missed; empty: none."""
        config, calls = self._config, self._calls
        while calls and calls[0][0] <= now - config.window_s:
            calls.popleft()
        if len(calls) < config.minimum_calls:
            return ""
        failed = sum(not ok for _, ok, _ in calls) / len(calls)
        if config.failure_rate is not None and failed > config.failure_rate:
            return f"{failed:.0%} of its calls failed, {config.failure_rate:.0%} may"
        if config.p95_s is not None:
            times = sorted(seconds if ok else math.inf for _, ok, seconds in calls)
            p95 = times[math.ceil(0.95 * len(times)) - 1]
            if p95 > config.p95_s:
                took = "failures" if math.isinf(p95) else f"{p95 * 1e3:.0f} ms"
                return f"its p95 is {took}, {config.p95_s * 1e3:.0f} ms may be"
        return ""

    def _cut(self, now: float, reason: str) -> None:
        config = self._config
        last = self._away_until
        soon = now - last < config.window_s + config.return_after_s
        self._level = min(self._level + 1, 30) if soon else 0
        away = min(config.return_after_s * 2.0**self._level, config.return_max_s)
        self._away_until, self._reason = now + away, reason
        self._missed_since = None
        self._calls.clear()
