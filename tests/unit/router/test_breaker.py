"""The breaker opens fast, closes fast, and nothing a caller forgets can wedge it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from services.router.breaker import Breaker, BreakerConfig, Permit, State

SMALL = BreakerConfig(
    consecutive_failures=3,
    consecutive_bad=5,
    minimum_calls=4,
    window_calls=8,
    window_s=5.0,
    open_s=1.0,
    open_max_s=4.0,
    forgive_s=3.0,
    probes_at_once=2,
    probes_to_close=2,
    permit_s=2.0,
)


def call(breaker: Breaker, now: float, *, ok: bool, slow: bool = False) -> bool:
    """One call that takes no time; returns whether it was permitted."""
    permit = breaker.acquire(now)
    if permit is not None:
        breaker.record(permit, now, ok=ok, slow=slow)
    return permit is not None


def opened(config: BreakerConfig = SMALL, now: float = 0.0) -> Breaker:
    """A breaker that has just opened at `now`."""
    breaker = Breaker(config)
    while breaker.state(now) is State.CLOSED:
        call(breaker, now, ok=False)
    return breaker


@pytest.mark.parametrize("rate", [1, 20, 100, 1000])
@pytest.mark.parametrize(
    ("ok", "slow"), [(False, False), (True, True), (False, True)], ids=["dead", "slow", "both"]
)
def test_opens_within_20_calls_of_an_outage(rate: int, *, ok: bool, slow: bool) -> None:
    """With the defaults, and a minute of good calls before it, an outage opens within 20 calls."""
    breaker = Breaker()
    for i in range(60 * rate):
        assert call(breaker, i / rate, ok=True)
    calls = 0
    while breaker.view(60 + calls / rate).times_opened == 0:
        assert call(breaker, 60 + calls / rate, ok=ok, slow=slow)
        calls += 1
    assert calls <= 20


@pytest.mark.parametrize("seed", range(20))
def test_opens_within_a_second_of_a_partial_outage(seed: int) -> None:
    """With the defaults at 100 calls/s, a target that fails 7 calls in 10 opens within 1 s."""
    chance = random.Random(seed)
    breaker = Breaker()
    for i in range(1000):
        call(breaker, i / 100, ok=True)
    opened_at = next(
        10 + i / 100
        for i in range(1000)
        if not call(breaker, 10 + i / 100, ok=chance.random() < 0.3)
    )
    assert opened_at <= 11


@pytest.mark.parametrize("seed", range(20))
def test_stays_closed_for_a_slightly_flaky_target(seed: int) -> None:
    """A target that fails 1 call in 10 keeps its traffic; retries are for that."""
    chance = random.Random(seed)
    breaker = Breaker(BreakerConfig(consecutive_failures=8))
    assert all(call(breaker, i / 100, ok=chance.random() < 0.9) for i in range(3000))


@given(
    outage=st.floats(0.5, 300),
    latency=st.floats(0.001, 0.3),
    timeout=st.floats(0.05, 1.0),
    rate=st.sampled_from([5, 20, 100]),
)
@settings(max_examples=60, deadline=None)
def test_closes_within_10_s_of_healing(
    outage: float, latency: float, timeout: float, rate: int
) -> None:
    """With the defaults, however long the outage was and the last failed probe hung."""
    breaker = opened(BreakerConfig())
    pending: list[tuple[float, bool, Permit]] = []
    start = max(0.0, outage - 20)  # the back-off is at its maximum long before
    for i in range(int((outage + 10 - start) * rate) + 2):
        now = start + i / rate
        for end, ok, ended in [p for p in pending if p[0] <= now]:
            breaker.record(ended, end, ok=ok)
        pending = [p for p in pending if p[0] > now]
        permit = breaker.acquire(now)
        if permit is not None:
            dead = now < outage
            pending.append((now + (timeout if dead else latency), not dead, permit))
    assert breaker.state(outage + 10) is State.CLOSED


def test_open_admits_nothing_until_its_time() -> None:
    """Before `open_s` nothing passes; at `open_s` a probe does."""
    breaker = opened()
    assert not breaker.admits(0.999)
    assert breaker.acquire(0.999) is None
    assert breaker.admits(1.0)
    permit = breaker.acquire(1.0)
    assert permit is not None
    assert permit.probe


def test_looking_changes_nothing() -> None:
    """The plan may look as often as it likes; only `acquire` starts a probe."""
    breaker = opened()
    before = [getattr(breaker, slot) for slot in Breaker.__slots__]
    for now in (0.5, 1.0, 100.0):
        breaker.admits(now)
        breaker.state(now)
        breaker.view(now)
    assert [getattr(breaker, slot) for slot in Breaker.__slots__] == before


def test_probes_are_bounded_and_leaks_expire() -> None:
    """Two probes at once; when their holders vanish, their places come back by themselves."""
    breaker = opened()
    assert breaker.acquire(1.0)
    assert breaker.acquire(1.0)
    assert breaker.acquire(1.0) is None
    assert not breaker.admits(2.999)
    assert breaker.admits(3.0)
    assert breaker.acquire(3.0)


def test_abandoned_probe_gives_its_place_back_without_a_verdict() -> None:
    """A hedge's loser says nothing about the target."""
    breaker = opened()
    first = breaker.acquire(1.0)
    second = breaker.acquire(1.0)
    assert first is not None
    assert second is not None
    breaker.abandon(first)
    assert breaker.state(1.0) is State.HALF_OPEN
    assert breaker.admits(1.0)


def test_open_time_doubles_up_to_its_limit_and_is_forgiven() -> None:
    """1, 2, 4, 4 s while probes fail; after a long good time it starts from 1 s again."""
    breaker = opened()
    now, waits = 0.0, []
    for _ in range(4):
        waits.append(breaker.view(now).open_left_s)
        now += waits[-1]
        call(breaker, now, ok=False)
    assert waits == [1.0, 2.0, 4.0, 4.0]
    now += 4
    for _ in range(2):
        call(breaker, now, ok=True)
    assert breaker.state(now) is State.CLOSED
    now += SMALL.forgive_s
    for _ in range(3):
        call(breaker, now, ok=False)
    assert breaker.view(now).open_left_s == 1.0


def test_opening_soon_after_closing_keeps_the_back_off() -> None:
    """A target that flaps is left alone for longer and longer."""
    breaker = opened()
    call(breaker, 1.0, ok=True)
    call(breaker, 1.0, ok=True)
    for _ in range(3):
        call(breaker, 1.5, ok=False)
    assert breaker.view(1.5).open_left_s == 2.0


def test_calls_from_before_the_outage_judge_nothing() -> None:
    """A late failure does not reopen, a late success does not close, a double report is one."""
    breaker = Breaker(SMALL)
    old = [breaker.acquire(0.0) for _ in range(6)]
    assert all(old)
    while breaker.state(0.0) is State.CLOSED:
        call(breaker, 0.0, ok=False)
    probe = breaker.acquire(1.0)
    assert probe is not None
    for i, permit in enumerate(old):
        assert permit is not None
        breaker.record(permit, 1.1, ok=i % 2 == 0)
    assert breaker.state(1.1) is State.HALF_OPEN
    breaker.record(probe, 1.2, ok=True)
    breaker.record(probe, 1.2, ok=True)
    assert breaker.state(1.2) is State.HALF_OPEN


@pytest.mark.parametrize(
    "wrong",
    [
        {"consecutive_failures": 0},
        {"failure_rate": 0.0},
        {"slow_rate": 1.1},
        {"open_s": 5.0, "open_max_s": 4.0},
        {"window_calls": 10, "minimum_calls": 20},
        {"permit_s": 0.0},
        {"probes_at_once": 0},
    ],
)
def test_a_breaker_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    """Configuration mistakes are found at load, not in an outage."""
    with pytest.raises(ValueError, match="breaker:"):
        BreakerConfig(**wrong)


class BreakerMachine(RuleBasedStateMachine):
    """Any interleaving of calls, leaks, late reports and waits, against a simple model."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(SMALL)
        self.epoch = 0  # counts changes of state as seen from outside
        self.seen = State.CLOSED
        self.given: dict[int, int] = {}  # permit -> epoch
        self.reported: set[int] = set()
        self.calls: list[tuple[float, bool, bool]] = []  # while closed, in this epoch
        self.good = 0
        self.live: dict[int, float] = {}  # probe -> expiry
        self.keep: list[Permit] = []  # so that ids stay unique

    def changed(self, state: State) -> None:
        """The model's change of state."""
        self.epoch += 1
        self.seen = state
        self.calls, self.good, self.live = [], 0, {}

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 2.0, 4.0, 10.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @rule(target=permits)
    def acquire(self) -> Permit | None:
        """What `admits` says is what `acquire` does, and probes are bounded."""
        admits, state = self.breaker.admits(self.now), self.breaker.state(self.now)
        permit = self.breaker.acquire(self.now)
        assert (permit is not None) == admits
        if permit is None:
            return None
        if state is State.HALF_OPEN and self.seen is State.OPEN:
            self.changed(State.HALF_OPEN)
        self.keep.append(permit)
        self.given[id(permit)] = self.epoch
        assert permit.probe == (state is State.HALF_OPEN)
        if permit.probe:
            self.live[id(permit)] = self.now + SMALL.permit_s
            live = [t for t in self.live.values() if t > self.now]
            assert len(live) <= SMALL.probes_at_once
        return permit

    @rule(permit=permits, ok=st.booleans(), slow=st.booleans())
    def report(self, permit: Permit | None, ok: bool, slow: bool) -> None:
        """The model decides from the whole list of this epoch's reports."""
        if permit is None:
            return
        counts = id(permit) not in self.reported and self.given[id(permit)] == self.epoch
        self.reported.add(id(permit))
        self.live.pop(id(permit), None)
        self.breaker.record(permit, self.now, ok=ok, slow=slow)
        if not counts:
            return
        if self.seen is State.HALF_OPEN:
            self.good += 1
            if slow or not ok:
                self.changed(State.OPEN)
            elif self.good == SMALL.probes_to_close:
                self.changed(State.CLOSED)
            return
        self.calls.append((self.now, ok, slow))
        window = [c for c in self.calls if c[0] > self.now - SMALL.window_s][-SMALL.window_calls :]
        failed, slowed = sum(not c[1] for c in window), sum(c[2] for c in window)
        last = [c[1] for c in self.calls[-SMALL.consecutive_failures :]]
        bad = [c[2] or not c[1] for c in self.calls[-SMALL.consecutive_bad :]]
        if (
            (len(last) == SMALL.consecutive_failures and not any(last))
            or (len(bad) == SMALL.consecutive_bad and all(bad))
            or (
                len(window) >= SMALL.minimum_calls
                and (
                    failed >= SMALL.failure_rate * len(window)
                    or slowed >= SMALL.slow_rate * len(window)
                )
            )
        ):
            self.changed(State.OPEN)

    @rule(permit=permits)
    def abandon(self, permit: Permit | None) -> None:
        """No verdict."""
        if permit is not None:
            self.reported.add(id(permit))
            self.live.pop(id(permit), None)
            self.breaker.abandon(permit)

    @invariant()
    def agrees_with_the_model(self) -> None:
        """The same state, but for OPEN that has become HALF_OPEN by time."""
        state = self.breaker.state(self.now)
        assert state is self.seen or (self.seen, state) == (State.OPEN, State.HALF_OPEN)

    @invariant()
    def never_wedged(self) -> None:
        """Whatever was leaked: after the longest wait that the configuration allows, it admits."""
        assert self.breaker.admits(self.now + max(SMALL.open_max_s, SMALL.permit_s))

    @precondition(lambda self: self.seen is State.CLOSED)
    @invariant()
    def closed_admits(self) -> None:
        """A closed breaker refuses nobody."""
        assert self.breaker.admits(self.now)


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
