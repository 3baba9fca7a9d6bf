"""The limiter keeps queues short, refuses the lowest priority first, and comes back slowly."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from services.router.limiter import Limiter, LimiterConfig, Outcome, Priority, Refusal, Ticket

INTERACTIVE, NORMAL, BATCH = Priority.INTERACTIVE, Priority.NORMAL, Priority.BATCH
SERVICE_S = 0.02


@dataclass
class Simulation:
    """Servers behind one queue behind one limiter, in simulated time, offered a mix of load."""

    servers: int = 4
    limiter: Limiter = field(default_factory=Limiter)
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    deadline_s: float = 1.0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.free = [0.0] * self.servers
        self.ends: list[tuple[float, int, Ticket, Outcome]] = []
        self.offered = 0

    def run(
        self, seconds: float, load: float, mix: dict[Priority, float], service_s: float = SERVICE_S
    ) -> tuple[dict[Priority, float], list[float]]:
        """Offer `load` times the capacity; return success by priority, and times of answers."""
        end = self.now + seconds
        asked, good = dict.fromkeys(mix, 0), dict.fromkeys(mix, 0)
        times: list[float] = []
        while self.now < end:
            self.now += self.chance.expovariate(load * self.servers / service_s)
            self.finish()
            priority = self.chance.choices(list(mix), list(mix.values()))[0]
            asked[priority] += 1
            ticket = self.limiter.acquire(self.now, priority)
            if isinstance(ticket, Refusal):
                continue
            done = max(self.now, heapq.heappop(self.free)) + service_s
            heapq.heappush(self.free, done)
            took = done - self.now
            in_time = took <= self.deadline_s
            good[priority] += in_time
            times.append(took)
            self.offered += 1
            outcome = Outcome.DONE if in_time else Outcome.TIMED_OUT
            leaves = self.now + min(took, self.deadline_s)
            heapq.heappush(self.ends, (leaves, self.offered, ticket, outcome))
        return {p: good[p] / max(asked[p], 1) for p in mix}, times

    def finish(self) -> None:
        """Release what has ended by now."""
        while self.ends and self.ends[0][0] <= self.now:
            at, _, ticket, outcome = heapq.heappop(self.ends)
            self.limiter.release(ticket, at, outcome)


@pytest.mark.parametrize("servers", [1, 4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_interactive_hardly_notices_a_threefold_overload(servers: int, seed: int) -> None:
    """At 3x capacity with 20 % interactive, >= 99.4 % of them are answered, capacity is used."""
    simulation = Simulation(servers=servers, chance=random.Random(seed))
    mix = {INTERACTIVE: 0.2, NORMAL: 0.4, BATCH: 0.4}
    simulation.run(5, 0.5, mix)
    success, times = simulation.run(30, 3.0, mix)
    assert success[INTERACTIVE] >= 0.994
    assert success[INTERACTIVE] > success[NORMAL] > success[BATCH]
    assert len(times) >= 0.95 * 30 * servers / SERVICE_S


@pytest.mark.parametrize("servers", [1, 6])
@pytest.mark.parametrize("priority", list(Priority))
def test_an_overload_that_lasts_does_not_grow_the_queue(servers: int, priority: Priority) -> None:
    """After minutes at 3x, answers take no longer than in the first half one."""
    simulation = Simulation(servers=servers)
    simulation.run(5, 0.3, {priority: 1.0})
    _, early = simulation.run(30, 3.0, {priority: 1.0})
    simulation.run(180, 3.0, {priority: 1.0})
    _, late = simulation.run(30, 3.0, {priority: 1.0})
    assert sorted(late)[len(late) // 2] <= 1.3 * sorted(early)[len(early) // 2]


def test_back_to_normal_within_10_s_of_an_overload() -> None:
    """Ten seconds after 3x ends, nobody of the usual load is refused or slow."""
    simulation = Simulation()
    mix = {INTERACTIVE: 0.4, NORMAL: 0.6}
    simulation.run(10, 0.4, mix)
    simulation.run(30, 3.0, mix)
    simulation.run(10, 0.4, mix)
    success, times = simulation.run(10, 0.4, mix)
    assert min(success.values()) == 1.0
    assert sorted(times)[int(0.99 * len(times))] <= 4 * SERVICE_S


def test_a_service_that_became_slower_for_good_is_used_in_full_again() -> None:
    """Three times slower for ever is not an overload for ever: the unqueued time is learnt anew."""
    simulation = Simulation(servers=32)
    simulation.run(20, 0.8, {INTERACTIVE: 1.0})
    simulation.run(60, 1.2, {INTERACTIVE: 1.0}, service_s=3 * SERVICE_S)
    _, times = simulation.run(20, 1.2, {INTERACTIVE: 1.0}, service_s=3 * SERVICE_S)
    assert len(times) >= 0.9 * 20 * 32 / (3 * SERVICE_S)


def fill(limiter: Limiter, priority: Priority, now: float = 0.0) -> list[Ticket]:
    """Acquire until refused."""
    tickets = []
    while isinstance(got := limiter.acquire(now, priority), Ticket):
        tickets.append(got)
    return tickets


def test_the_lowest_priority_is_refused_first_and_reserves_stay_closed() -> None:
    """Of 100: batch gets 30, normal 30 more, interactive 40 more, each refused at its own."""
    limiter = Limiter(LimiterConfig(initial=100))
    assert [len(fill(limiter, p)) for p in (BATCH, NORMAL, BATCH, INTERACTIVE)] == [30, 30, 0, 40]


def test_a_refusal_says_when_and_later_for_the_lower() -> None:
    """The hint is positive, bounded, and longer for a lower priority."""
    limiter = Limiter()
    fill(limiter, INTERACTIVE)
    hints = []
    for priority in Priority:
        refusal = limiter.acquire(0.0, priority)
        assert isinstance(refusal, Refusal)
        hints.append(refusal.retry_after_s)
    assert hints == sorted(hints)
    assert hints[0] < hints[-1]
    assert hints[0] > 0
    assert hints[-1] <= LimiterConfig().retry_after_max_s


def rounds(
    limiter: Limiter,
    count: int,
    outcome: Outcome,
    start: float,
    took: float,
    priority: Priority = INTERACTIVE,
) -> float:
    """Fill and empty it, `count` times; returns the time after."""
    now = start
    for _ in range(count):
        tickets = fill(limiter, priority, now)
        now += max(took, 0.1)
        for ticket in tickets:
            ticket.started = now - took
            limiter.release(ticket, now, outcome)
    return now


def test_slow_start_after_a_collapse() -> None:
    """All dropped: down to the minimum; then it doubles to half of before, then creeps."""
    limiter = Limiter(LimiterConfig(initial=256, minimum=16))
    now = rounds(limiter, 3, Outcome.DONE, 0.0, 0.01)
    before = limiter.limit
    now = rounds(limiter, 2, Outcome.DROPPED, now, 0.01)
    assert limiter.limit == 16
    seen = []
    for _ in range(8):
        now = rounds(limiter, 1, Outcome.DONE, now, 0.01)
        seen.append(limiter.limit)
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(seen))
    assert before / 4 < max(seen) < before


def test_no_growth_without_demand() -> None:
    """A limit that nobody reaches stays: an idle hour is not a licence for a flood."""
    limiter = Limiter()
    for i in range(5000):
        ticket = limiter.acquire(i * 0.1, INTERACTIVE)
        assert isinstance(ticket, Ticket)
        limiter.release(ticket, i * 0.1 + 0.01, Outcome.DONE)
    assert limiter.limit == LimiterConfig().initial


def test_ignored_requests_teach_nothing() -> None:
    """Cache hits and bad requests leave the limit alone, however fast they are."""
    limiter = Limiter()
    rounds(limiter, 20, Outcome.IGNORED, 0.0, 0.0001)
    assert limiter.limit == LimiterConfig().initial
    assert limiter.in_flight == 0


def test_a_batch_flood_is_not_mistaken_for_idleness() -> None:
    """Batch alone never fills the limit; its queue must not become the time without a queue."""
    limiter = Limiter(LimiterConfig(initial=100, minimum=2))
    now = rounds(limiter, 3, Outcome.DONE, 0.0, 0.01, BATCH)
    before = limiter.limit
    seen = []
    for _ in range(15):
        now = rounds(limiter, 1, Outcome.DONE, now, 0.1, BATCH)
        seen.append(limiter.limit)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < before / 2
    unqueued = limiter._kinds[""].unqueued_s
    assert unqueued == pytest.approx(0.01)


def test_hopeless_deadlines_do_not_lower_the_limit() -> None:
    """Requests that were given less time than an idle system needs say nothing about load."""
    limiter = Limiter(LimiterConfig(initial=64))
    now = rounds(limiter, 5, Outcome.DONE, 0.0, 0.05)
    before = limiter.limit
    now = rounds(limiter, 20, Outcome.TIMED_OUT, now, 0.001)
    assert limiter.limit == before
    rounds(limiter, 2, Outcome.TIMED_OUT, now, 1.0)
    assert limiter.limit == LimiterConfig().minimum


def test_a_change_in_the_mix_is_not_load() -> None:
    """From all fast to all slow requests, each as fast as its kind ever was: no shrinking."""
    limiter = Limiter(LimiterConfig(initial=64, minimum=4))
    now = 0.0
    for i in range(400):
        kind, took = ("fast", 0.002) if i < 200 or i % 10 else ("slow", 0.5)
        kind, took = ("slow", 0.5) if i > 300 else (kind, took)
        tickets = [limiter.acquire(now, INTERACTIVE, kind) for _ in range(40)]
        now += took
        for ticket in tickets:
            assert isinstance(ticket, Ticket)
            limiter.release(ticket, now, Outcome.DONE)
    assert limiter.limit >= 64


def test_kinds_are_bounded() -> None:
    """A caller that invents tasks can't fill the memory."""
    limiter = Limiter(LimiterConfig(kinds_max=4))
    for i in range(1000):
        ticket = limiter.acquire(float(i), INTERACTIVE, f"task-{i}")
        assert isinstance(ticket, Ticket)
        limiter.release(ticket, i + 0.5, Outcome.DONE)
    assert len(limiter._kinds) <= 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"minimum": 0},
        {"initial": 8, "minimum": 16},
        {"batch_share": 0.7},
        {"tolerance": 0.5},
        {"window_s": 0},
    ],
)
def test_limits_that_cannot_hold_are_refused(wrong: dict[str, Any]) -> None:
    """Configuration mistakes are found at load."""
    with pytest.raises(ValueError, match="limiter:"):
        LimiterConfig(**wrong)


def test_a_flood_of_one_kind_does_not_shut_out_the_others() -> None:
    """At the limit a few of each other kind still get in, of any priority; the maximum holds."""
    limiter = Limiter(LimiterConfig(initial=20, minimum=20, maximum=30))
    while isinstance(limiter.acquire(0.0, INTERACTIVE, "flood"), Ticket):
        pass
    assert limiter.in_flight == 20
    for kind in "abc":
        got = [limiter.acquire(0.0, BATCH, kind) for _ in range(6)]
        assert sum(isinstance(one, Ticket) for one in got) == (4 if kind != "c" else 2)
    assert limiter.in_flight == 30


class LimiterMachine(RuleBasedStateMachine):
    """Any interleaving of requests, ends and double ends, against a plain count."""

    tickets = Bundle("tickets")
    CONFIG = LimiterConfig(initial=10, minimum=2, maximum=20, window_samples=3)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limiter = Limiter(self.CONFIG)
        self.out: set[int] = set()
        self.keep: list[Ticket] = []

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.2, 5.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @rule(target=tickets, priority=st.sampled_from(Priority), kind=st.sampled_from("abc"))
    def ask(self, priority: Priority, kind: str) -> Any:
        """Admitted exactly below the priority's ceiling, or as one of few of its kind."""
        shares = {INTERACTIVE: 1.0, NORMAL: 0.6, BATCH: 0.3}
        own = sum(ticket.kind == kind for ticket in self.keep if id(ticket) in self.out)
        room = len(self.out) < max(1, int(self.limiter.limit * shares[priority]))
        room = room or (own < self.CONFIG.kind_floor and len(self.out) < self.CONFIG.maximum)
        got = self.limiter.acquire(self.now, priority, kind)
        assert isinstance(got, Ticket) == room
        if isinstance(got, Refusal):
            assert 0 < got.retry_after_s <= self.CONFIG.retry_after_max_s
            return multiple()
        self.keep.append(got)
        self.out.add(id(got))
        return got

    @rule(ticket=tickets, outcome=st.sampled_from(Outcome))
    def end(self, ticket: Ticket, outcome: Outcome) -> None:
        """Ends once, however often it is told."""
        self.out.discard(id(ticket))
        self.limiter.release(ticket, self.now, outcome)

    @invariant()
    def counts_and_bounds_hold(self) -> None:
        """In flight is what is out; the limit stays in its bounds; priorities keep their order."""
        assert self.limiter.in_flight == len(self.out)
        assert self.CONFIG.minimum <= self.limiter.limit <= self.CONFIG.maximum
        ceilings = [self.limiter.ceiling(p) for p in Priority]
        assert ceilings == sorted(ceilings, reverse=True)
        assert ceilings[-1] >= 1


TestLimiterMachine = LimiterMachine.TestCase
TestLimiterMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
