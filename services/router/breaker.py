"""Circuit breaker of one candidate: stops calls that would fail, and finds out when they would not.

Pure: the clock is passed in, nothing is scheduled. Memory is bounded by the window. Works for a
single back end, because nothing is compared with a peer.

While CLOSED, four signs open it: failures in a row, bad calls in a row (failed or slow), and, over
the last calls of the last seconds, the share that failed or the share that was slow. The first two
see an outage within a few calls however many good calls the window still holds; the other two
see a partial one. After `open_s` it is HALF_OPEN: a bounded number of real calls pass at once, one
bad one opens it again for twice as long, `probes_to_close` good ones close it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum


class State(IntEnum):
    """Numbered as `BreakerState` in the contracts."""

    CLOSED = 1
    OPEN = 2
    HALF_OPEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """When it opens, for how long, and what closes it. Times in seconds, rates in 0..1.

    With the defaults a dead target is seen after 5 calls and a slow one after 20; after healing it
    takes at most `open_max_s`, one slow probe more at the worst, and three good calls.
    """

    consecutive_failures: int = 5
    consecutive_bad: int = 20
    failure_rate: float = 0.5
    slow_rate: float = 0.8
    minimum_calls: int = 20
    window_calls: int = 100
    window_s: float = 10.0
    open_s: float = 0.5
    open_max_s: float = 4.0
    forgive_s: float = 10.0  # closed for so long, the next opening starts from `open_s` again
    probes_at_once: int = 2
    probes_to_close: int = 3
    permit_s: float = 3.0  # a probe that never reports gives its place back after this

    def __post_init__(self) -> None:
        """Raise ValueError for a breaker that could never open or never close."""
        counts = (
            self.consecutive_failures,
            self.consecutive_bad,
            self.minimum_calls,
            self.probes_at_once,
            self.probes_to_close,
        )
        if min(counts) < 1 or self.window_calls < self.minimum_calls:
            raise ValueError("breaker: counts must be at least 1, window_calls >= minimum_calls")
        if not (0 < self.failure_rate <= 1 and 0 < self.slow_rate <= 1):
            raise ValueError("breaker: rates must be in (0, 1]")
        if not 0 < self.open_s <= self.open_max_s:
            raise ValueError("breaker: 0 < open_s <= open_max_s")
        if min(self.window_s, self.permit_s) <= 0 or self.forgive_s < 0:
            raise ValueError("breaker: times must be positive")


@dataclass(slots=True, eq=False)
class Permit:
    """Leave to make one call. Report it once, with `record` or `abandon`; more is ignored."""

    generation: int
    probe: bool
    expires: float
    reported: bool = field(default=False)


@dataclass(frozen=True, slots=True)
class BreakerView:
    """What `Explain` and the metrics show."""

    state: State
    calls: int  # in the window
    failure_rate: float
    slow_rate: float
    open_left_s: float  # until probes pass; 0 unless OPEN
    times_opened: int


class Breaker:
    """One candidate's breaker. Not thread-safe; one event loop owns it."""

    __slots__ = (
        "_bad_run",
        "_closed_at",
        "_config",
        "_failed",
        "_failed_run",
        "_generation",
        "_good_probes",
        "_level",
        "_open_until",
        "_probes",
        "_slow",
        "_state",
        "_times_opened",
        "_window",
    )

    def __init__(self, config: BreakerConfig | None = None) -> None:
        """Start CLOSED."""
        self._config = config or BreakerConfig()
        self._state = State.CLOSED
        self._generation = 0  # changes with the state: reports from an earlier one decide nothing
        self._window: deque[tuple[float, bool, bool]] = deque()  # (when, failed, slow)
        self._failed = 0
        self._slow = 0
        self._failed_run = 0
        self._bad_run = 0
        self._level = 0  # how often open time was doubled
        self._open_until = 0.0
        self._closed_at = float("-inf")
        self._probes: list[Permit] = []
        self._good_probes = 0
        self._times_opened = 0

    def state(self, now: float) -> State:
        """Return the state at `now`: OPEN becomes HALF_OPEN by time alone. Changes nothing."""
        if self._state is State.OPEN and now >= self._open_until:
            return State.HALF_OPEN
        return self._state

    def admits(self, now: float) -> bool:
        """Return whether `acquire` at `now` would give a permit. Changes nothing."""
        state = self.state(now)
        if state is State.HALF_OPEN:
            out = sum(permit.expires > now for permit in self._probes)
            return out < self._config.probes_at_once
        return state is State.CLOSED

    def acquire(self, now: float) -> Permit | None:
        """Return leave to make one call, or None. A permit that is lost expires by itself."""
        if not self.admits(now):
            return None
        if self._state is State.CLOSED:
            return Permit(self._generation, probe=False, expires=now + self._config.permit_s)
        if self._state is State.OPEN:
            self._state = State.HALF_OPEN
            self._generation += 1
        self._probes = [permit for permit in self._probes if permit.expires > now]
        permit = Permit(self._generation, probe=True, expires=now + self._config.permit_s)
        self._probes.append(permit)
        return permit

    def record(self, permit: Permit, now: float, *, ok: bool, slow: bool = False) -> None:
        """Report how the permitted call went.

        Args:
            permit: from `acquire`. A second report of it, or one from before the last change of
                state, is ignored: calls that started before an outage don't judge the recovery.
            now: the end of the call.
            ok: it was answered. Errors that are the caller's fault count as ok.
            slow: it took longer than the candidate should.
        """
        if not self._settle(permit):
            return
        bad = slow or not ok
        if self._state is State.HALF_OPEN:
            if bad:
                self._open(now)
                return
            self._good_probes += 1
            if self._good_probes >= self._config.probes_to_close:
                self._close(now)
            return
        self._window.append((now, not ok, slow))
        self._failed += not ok
        self._slow += slow
        self._failed_run = 0 if ok else self._failed_run + 1
        self._bad_run = self._bad_run + 1 if bad else 0
        self._trim(now)
        if self._should_open():
            self._open(now)

    def abandon(self, permit: Permit) -> None:
        """Give a permit back without a result: a hedge's loser, a caller that went away."""
        self._settle(permit)

    def view(self, now: float) -> BreakerView:
        """Return what an operator wants to see. Changes nothing."""
        oldest = now - self._config.window_s
        recent = [call for call in self._window if call[0] > oldest]
        calls = len(recent)
        state = self.state(now)
        return BreakerView(
            state=state,
            calls=calls,
            failure_rate=sum(call[1] for call in recent) / calls if calls else 0.0,
            slow_rate=sum(call[2] for call in recent) / calls if calls else 0.0,
            open_left_s=self._open_until - now if state is State.OPEN else 0.0,
            times_opened=self._times_opened,
        )

    def _settle(self, permit: Permit) -> bool:
        """Take the permit back; return whether its report counts."""
        if permit.reported:
            return False
        permit.reported = True
        if permit in self._probes:
            self._probes.remove(permit)
        return permit.generation == self._generation

    def _trim(self, now: float) -> None:
        oldest = now - self._config.window_s
        window = self._window
        while window and (window[0][0] <= oldest or len(window) > self._config.window_calls):
            _, failed, slow = window.popleft()
            self._failed -= failed
            self._slow -= slow

    def _should_open(self) -> bool:
        config = self._config
        if self._failed_run >= config.consecutive_failures:
            return True
        if self._bad_run >= config.consecutive_bad:
            return True
        calls = len(self._window)
        return calls >= config.minimum_calls and (
            self._failed >= config.failure_rate * calls or self._slow >= config.slow_rate * calls
        )

    def _open(self, now: float) -> None:
        config = self._config
        if self._state is State.HALF_OPEN or now - self._closed_at < config.forgive_s:
            self._level = min(self._level + 1, 62)  # further doubling is past any maximum
        else:
            self._level = 0
        self._open_until = now + min(config.open_s * 2.0**self._level, config.open_max_s)
        self._times_opened += 1
        self._enter(State.OPEN)

    def _close(self, now: float) -> None:
        self._closed_at = now
        self._enter(State.CLOSED)

    def _enter(self, state: State) -> None:
        self._state = state
        self._generation += 1
        self._window.clear()
        self._probes.clear()
        self._failed = self._slow = self._failed_run = self._bad_run = self._good_probes = 0
