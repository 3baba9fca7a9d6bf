"""Cutover: criteria of the catalog move a candidate behind the others, and back by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.errors import ServiceError, UnavailableError
from services.router.cutover import Criteria, Cutover
from services.router.plan import Kind, State, make_plan
from tests.unit.router.ports import World, failure
from tests.unit.router.test_plan import POLICY, candidate, facts
from twinpath.common.v1 import context_pb2, decision_pb2

RATE = Criteria(failure_rate=0.2, minimum_calls=10, return_after_s=5)
SLOW = Criteria(p95_s=0.2, minimum_calls=10, return_after_s=5)
DOWN = UnavailableError("TRITON_UNAVAILABLE", "down")


def feed(cutover: Cutover, start: float, calls: list[tuple[bool, float]]) -> float:
    """Observe calls, a tenth of a second apart; return the time after them."""
    for ok, seconds in calls:
        cutover.observe(start, ok=ok, seconds=seconds)
        start += 0.11
    return start


def test_too_many_failures_cut_over_and_time_brings_it_back() -> None:
    """Above the rate it is away with the reason, below it is not; after a while it is back."""
    cutover = Cutover(RATE)
    now = feed(cutover, 0, [(True, 0.01)] * 8 + [(False, 0.01)] * 2)
    assert cutover.away(now) == ""
    now = feed(cutover, now, [(False, 0.01)])
    assert "27% of its calls failed, 20% may" in cutover.away(now)
    assert cutover.away(now + 4.5)
    assert cutover.away(now + 5) == ""


def test_a_slow_p95_cuts_over() -> None:
    """One slow call in ten does, and the reason says how slow."""
    cutover = Cutover(SLOW)
    now = feed(cutover, 0, [(True, 0.01)] * 9 + [(True, 0.5)])
    assert "its p95 is 500 ms, 200 ms may be" in cutover.away(now)


def test_a_few_calls_say_nothing() -> None:
    """Below the minimum count nothing is cut over."""
    cutover = Cutover(RATE)
    assert cutover.away(feed(cutover, 0, [(False, 1.0)] * 9)) == ""


def test_a_blip_shorter_than_asked_for_is_forgiven() -> None:
    """With `for_s` a criterion has to be missed without a break for so long."""
    criteria = Criteria(failure_rate=0.5, minimum_calls=2, window_s=1, for_s=3)
    cutover = Cutover(criteria)
    now = feed(cutover, 0, [(False, 0.1)] * 10)
    now = feed(cutover, now, [(True, 0.1)] * 20)
    now = feed(cutover, now, [(False, 0.1)] * 20)
    assert cutover.away(now) == ""
    now = feed(cutover, now, [(False, 0.1)] * 20)
    assert cutover.away(now)


def test_who_is_still_bad_on_return_stays_away_longer() -> None:
    """Absences double up to the longest, and start anew after a good while."""
    criteria = Criteria(failure_rate=0.2, minimum_calls=2, return_after_s=5, return_max_s=15)
    cutover, now, away = Cutover(criteria), 0.0, []
    for _ in range(4):
        now = feed(cutover, now, [(False, 0.1)] * 2)
        left = now
        while cutover.away(now):
            now += 0.01
        away.append(round(now - left, 1))
    assert away == pytest.approx([4.9, 9.9, 14.9, 14.9], abs=0.1)
    now = feed(cutover, now, [(True, 0.1)] * 300)
    now = feed(cutover, now, [(False, 0.1)] * 20)
    left = now
    while cutover.away(now):
        now += 0.01
    assert now - left <= 5


@settings(deadline=None)
@given(
    cut=st.lists(st.booleans(), min_size=1, max_size=6),
    ready=st.lists(st.booleans(), min_size=6, max_size=6),
    paths=st.lists(st.sampled_from(["local", "remote"]), min_size=6, max_size=6),
    data_class=st.integers(1, 4),
)
def test_a_cutover_changes_an_order_and_admits_nobody(
    cut: list[bool], ready: list[bool], paths: list[str], data_class: int
) -> None:
    """The same candidates are admitted as without it, those cut over behind those that are not."""
    found = [candidate(f"c{n}", paths[n], n + 1) for n in range(len(cut))]
    plain = {c.id: State(ready=ready[n]) for n, c in enumerate(found)}
    moved = {
        c.id: State(ready=ready[n], cut_over="slow" if cut[n] else "") for n, c in enumerate(found)
    }
    before = make_plan(found, plain, POLICY, facts(data_class), time_left=1).admitted
    after = make_plan(found, moved, POLICY, facts(data_class), time_left=1)
    order = [entry.candidate.id for entry in before]
    assert [e.candidate.id for e in after.admitted] == [
        *(name for name in order if not moved[name].cut_over),
        *(name for name in order if moved[name].cut_over),
    ]
    for entry in after.entries:
        if entry.candidate.path == "remote" and data_class == 4:
            assert entry.rank == 0
            assert any(r.kind is Kind.POLICY for r in entry.refusals)


def cutting(world: World, task: str = "diabetes_progression") -> None:
    """Let a task have criteria."""
    criteria = Criteria(failure_rate=0.2, minimum_calls=3, return_after_s=5)
    world.catalog.tasks[task] = world.catalog.tasks[task].model_copy(update={"cutover": criteria})


async def test_traffic_moves_before_the_breaker_and_comes_back() -> None:
    """One call in three fails: the other path answers first, the plan says why, and then back."""
    world = World()
    cutting(world)
    for number in range(9):
        world.local.behave = (lambda item: failure(item, DOWN)) if number % 3 == 0 else None
        world.clock.now += 0.2
        await world.decide()
    world.local.behave = None
    reply = await world.decide(include_plan=True)
    assert reply.answered_by.path == context_pb2.PATH_REMOTE
    moved = {e.candidate.id: e for e in reply.plan.entries}["diabetes_small"]
    assert moved.rank == 2
    assert moved.breaker == decision_pb2.BREAKER_STATE_CLOSED
    assert moved.demoted.rule == "cut_over"
    assert "of its calls failed" in moved.demoted.message
    world.clock.now += 6
    reply = await world.decide(include_plan=True)
    assert reply.answered_by.path == context_pb2.PATH_LOCAL
    assert not any(e.HasField("demoted") for e in reply.plan.entries)


async def test_who_is_cut_over_is_still_the_last_resort() -> None:
    """Where the others are away, it answers."""
    world = World()
    cutting(world)
    for number in range(9):
        world.local.behave = (lambda item: failure(item, DOWN)) if number % 3 == 0 else None
        world.clock.now += 0.2
        await world.decide()
    world.local.behave = None
    world.remote.behave = lambda item: failure(item, DOWN)
    assert (await world.decide()).answered_by.path == context_pb2.PATH_LOCAL


async def test_restricted_traffic_does_not_cut_over_to_a_vendor() -> None:
    """The local candidate of a restricted task stays the only one, however bad it is."""
    world = World()
    cutting(world, "tumour_triage")
    for number in range(12):
        world.local.behave = (lambda item: failure(item, DOWN)) if number % 2 else None
        world.clock.now += 0.2
        try:
            await world.decide("tumour_triage")
        except ServiceError:
            continue
    assert world.remote.items == []


async def test_an_outage_is_the_breakers_matter_alone() -> None:
    """While the breaker is open or probing nothing is held against it: once closed, it is back."""
    world = World()
    criteria = Criteria(
        failure_rate=0.2, minimum_calls=6, window_s=60, return_after_s=1000, return_max_s=1000
    )
    task = world.catalog.tasks["diabetes_progression"]
    world.catalog.tasks[task.name] = task.model_copy(update={"cutover": criteria})
    world.local.behave = lambda item: failure(item, DOWN)
    for _ in range(100):
        world.clock.now += 0.2
        await world.decide()
    world.local.behave = None
    for _ in range(40):
        world.clock.now += 0.2
        reply = await world.decide()
    assert reply.answered_by.path == context_pb2.PATH_LOCAL
