"""Adaptive limit of concurrent requests, with priorities: refuse early what would only queue.

The limit follows a gradient, as `Gradient2Limit` of Netflix's concurrency-limits does ("Performance
Under Load", Netflix Technology Blog, 2018): while requests take no longer than they do without a
queue, the limit grows by the square root of itself; as they take longer, it shrinks in proportion.
Two things differ, both for an overload that lasts:

- The time without a queue is not a long average of all times, which learns the overload's queue
  within seconds and then lets it grow. It falls at once, and rises only from windows that were
  mostly idle or at the lowest limit, where no queue can be.
- It is kept for each kind of request (each task), and the gradient uses the ratio to it, so that a
  change in the mix of fast and slow kinds is not taken for load.

Priorities share the limit by ceilings on the total: batch may enter while less than 30 % of the
limit is in use, normal 60 %, interactive all of it. So each one's reserve is closed to those below
it, the lowest is refused first, and nobody queues here: a refusal is immediate and says when to
come back. Each kind has a few places of its own beyond that, so that a flood of one task does not
shut out the others.

After a collapse (most of a window was refused further on, or timed out) it starts slowly: from the
minimum, doubling in each full window up to half of what it was. Pure: the clock is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum


class Priority(IntEnum):
    """Numbered as `Priority` in the contracts."""

    INTERACTIVE = 1
    NORMAL = 2
    BATCH = 3


class Outcome(Enum):
    """What a finished request says about load."""

    DONE = "done"  # its time counts
    DROPPED = "dropped"  # refused for load further on: back off
    TIMED_OUT = "timed_out"  # back off too, unless its caller left it too little time anyway
    IGNORED = "ignored"  # a cache hit, a bad request, a cancelled one: says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterConfig:
    """Bounds and pace of the limit."""

    initial: int = 32
    minimum: int = 16
    maximum: int = 512
    normal_share: float = 0.6  # of the limit, open to normal and batch
    batch_share: float = 0.3  # of the limit, open to batch
    tolerance: float = 2.0  # how many times the unqueued time is not yet a queue
    smoothing: float = 0.2  # how much of each new estimate is taken
    window_s: float = 0.1  # the limit moves at most so often
    window_samples: int = 10  # and from no fewer requests
    collapse: float = 0.5  # share of dropped requests in a window that means: start over slowly
    retry_after_max_s: float = 5.0
    kinds_max: int = 64
    kind_floor: int = 4  # in flight of one kind that are admitted whatever the others do

    def __post_init__(self) -> None:
        """Raise ValueError for limits that could not hold or shares in the wrong order."""
        if not 1 <= self.minimum <= self.initial <= self.maximum:
            raise ValueError("limiter: 1 <= minimum <= initial <= maximum")
        if not 0 < self.batch_share <= self.normal_share <= 1:
            raise ValueError("limiter: 0 < batch_share <= normal_share <= 1")
        if self.tolerance < 1 or not 0 < self.smoothing <= 1 or not 0 < self.collapse <= 1:
            raise ValueError("limiter: tolerance >= 1, smoothing and collapse in (0, 1]")
        if self.window_s <= 0 or min(self.window_samples, self.kinds_max) < 1:
            raise ValueError("limiter: windows must not be empty")


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted request. Release it once; more is ignored."""

    priority: Priority
    kind: str
    started: float
    released: bool = field(default=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, and when to come back (seconds). Clients add jitter: many are told the same."""

    limit: int
    in_flight: int
    retry_after_s: float


@dataclass(slots=True)
class _Kind:
    """What is known of one kind of request."""

    unqueued_s: float | None = None
    total_s: float = 0.0  # in this window
    count: int = 0


class Limiter:
    """One process's limit. Not thread-safe; one event loop owns it."""

    __slots__ = (
        "_by_kind",
        "_config",
        "_dropped",
        "_in_flight",
        "_kinds",
        "_limit",
        "_mean_s",
        "_peak",
        "_refused",
        "_slow_start_until",
        "_window_start",
    )

    def __init__(self, config: LimiterConfig | None = None) -> None:
        """Start at the initial limit, growing slowly from there."""
        self._config = config or LimiterConfig()
        self._limit = float(self._config.initial)
        self._in_flight = 0
        self._by_kind: dict[str, int] = {}  # in flight
        self._peak = 0
        self._refused = False
        self._dropped = 0
        self._mean_s = 0.05  # of recent requests; only for the hint
        self._kinds: dict[str, _Kind] = {}
        self._window_start: float | None = None
        self._slow_start_until: float | None = None

    @property
    def limit(self) -> int:
        """How many requests may be in flight."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """How many are."""
        return self._in_flight

    def ceiling(self, priority: Priority) -> int:
        """Return below which total a request of this priority is admitted; at least 1."""
        share = 1.0
        if priority is Priority.NORMAL:
            share = self._config.normal_share
        elif priority is Priority.BATCH:
            share = self._config.batch_share
        return max(1, int(self.limit * share))

    def acquire(self, now: float, priority: Priority, kind: str = "") -> Ticket | Refusal:
        """Admit or refuse one request, at once.

        Args:
            now: its start.
            priority: whose ceiling counts.
            kind: what is alike in time, such as the task; the first `kinds_max` are told apart.
        """
        ceiling = self.ceiling(priority)
        own = self._by_kind.get(kind, 0)
        full = self._in_flight >= self._config.maximum
        if self._in_flight >= ceiling and (full or own >= self._config.kind_floor):
            self._refused = True
            return Refusal(self.limit, self._in_flight, self._retry_after(priority, ceiling))
        self._by_kind[kind] = own + 1
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        return Ticket(priority, kind, now)

    def release(self, ticket: Ticket, now: float, outcome: Outcome) -> None:
        """Give the place back, and learn from how it went."""
        if ticket.released:
            return
        ticket.released = True
        self._in_flight -= 1
        self._by_kind[ticket.kind] -= 1
        if not self._by_kind[ticket.kind]:
            del self._by_kind[ticket.kind]  # callers make names up
        if outcome is Outcome.IGNORED:
            return
        if self._window_start is None:
            self._window_start = now
        kind = self._kind(ticket.kind)
        took = max(now - ticket.started, 1e-6)
        if outcome is Outcome.TIMED_OUT:
            # one caller with hopeless deadlines must not lower the limit of all
            if kind.unqueued_s is not None and took < self._config.tolerance * kind.unqueued_s:
                return
            self._dropped += 1
        elif outcome is Outcome.DROPPED:
            self._dropped += 1
        else:
            kind.total_s += took
            kind.count += 1
        if now - self._window_start >= self._config.window_s:
            samples = self._dropped + sum(kind.count for kind in self._kinds.values())
            if samples >= self._config.window_samples:
                self._move(samples)
                self._begin(now)

    def _kind(self, name: str) -> _Kind:
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= self._config.kinds_max:
                name = ""  # the rest share one record
            kind = self._kinds.setdefault(name, _Kind())
        return kind

    def _begin(self, now: float) -> None:
        self._window_start = now
        self._peak = self._in_flight
        self._refused = False
        self._dropped = 0
        for kind in self._kinds.values():
            kind.total_s, kind.count = 0.0, 0

    def _move(self, samples: int) -> None:
        """Set the limit by the window that has ended."""
        config, limit = self._config, self._limit
        idle = self._peak < limit / 2 and not self._refused
        stretch = self._stretch(idle=idle)
        if self._dropped >= config.collapse * samples:
            self._slow_start(limit / 2)
            return
        if self._dropped:
            self._slow_start_until = None
            self._set(limit * 0.9)
            return
        gradient = max(0.5, min(1.0, config.tolerance / stretch))
        if self._slow_start_until is not None:
            if gradient == 1.0 and limit * 2 <= self._slow_start_until:
                if not idle:
                    self._set(limit * 2)
                return
            self._slow_start_until = None
        if idle and gradient == 1.0:
            return  # nothing asked for more, so nothing shows that more would be well
        target = limit * gradient + math.sqrt(limit)
        self._set(limit + config.smoothing * (target - limit))

    def _stretch(self, *, idle: bool) -> float:
        """Return how many times longer than without a queue requests took; learn the latter."""
        at_lowest = self.limit <= self._config.minimum
        total = stretched = seconds = 0.0
        for kind in self._kinds.values():
            if not kind.count:
                continue
            mean = kind.total_s / kind.count
            if kind.unqueued_s is None or mean < kind.unqueued_s:
                kind.unqueued_s = mean
            elif idle or at_lowest:
                kind.unqueued_s += 0.05 * (mean - kind.unqueued_s)
            stretched += kind.count * mean / kind.unqueued_s
            total += kind.count
            seconds += kind.total_s
        if not total:
            return 1.0
        self._mean_s += 0.3 * (seconds / total - self._mean_s)
        return stretched / total

    def _slow_start(self, until: float) -> None:
        # an outage collapses window after window: what was before the first one stays the goal
        if self._slow_start_until is None or self._limit > self._config.minimum:
            self._slow_start_until = max(until, float(self._config.minimum))
        self._set(float(self._config.minimum))

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._config.minimum), self._config.maximum)

    def _retry_after(self, priority: Priority, ceiling: int) -> float:
        """Seconds until this priority likely finds a place: the excess over the rate of leaving."""
        excess = self._in_flight - ceiling + 1
        seconds = self._mean_s * excess / max(self._in_flight, 1) * 4.0 ** (priority - 1)
        return min(max(seconds, self._mean_s), self._config.retry_after_max_s)
