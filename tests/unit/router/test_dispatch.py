"""Dispatching: retries, breakers and hedges, none of which reaches a candidate without a rank."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.chassis.errors import DeadlineExceededError, UnavailableError
from services.router.breaker import State
from tests.unit.router.ports import World, answer, failure
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import inference_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE
TRITON_DOWN = UnavailableError("TRITON_UNAVAILABLE", "down")


def hedged(tmp_path: Path) -> World:
    """A world whose diabetes task hedges."""
    import shutil

    from tests.unit.router.ports import CATALOG

    folder = Path(shutil.copytree(CATALOG, tmp_path / "catalog"))
    path = folder / "tasks" / "diabetes_progression.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "resilience: {hedge: true}\n")
    return World(folder)


async def measured(world: World, seconds: float = 0.01) -> None:
    """Let both candidates have a measured latency."""
    from services.router.estimator import size_class

    await world.board.refresh()
    task = world.catalog.tasks["diabetes_progression"]
    for candidate in world.board.candidates(task):
        for index in range(200):
            gauge = world.board.gauge(candidate)
            for size in range(size_class(4096) + 1):
                gauge.estimator.observe(world.clock.now + index * 1e-4, size, seconds)


async def test_the_breaker_stops_calls_to_a_dead_candidate() -> None:
    """After a few failures the dead candidate is no longer asked; the other one answers."""
    world = World()
    world.local.behave = lambda item: failure(item, TRITON_DOWN)
    for _ in range(20):
        reply = await world.decide()
        assert reply.answered_by.path == REMOTE
    assert len(world.local.items) <= 6
    assert len(reply.attempts) == 1


async def test_a_healed_candidate_is_probed_with_real_requests_and_returns() -> None:
    """Once it answers again, probes close the breaker and the traffic comes back."""
    world = World()
    world.local.behave = lambda item: failure(item, TRITON_DOWN)
    for _ in range(8):
        await world.decide()
    world.local.behave = None
    kinds = []
    for _ in range(10):
        world.clock.now += 1.0
        reply = await world.decide()
        kinds.append(reply.attempts[0].kind)
    assert decision_pb2.ATTEMPT_KIND_PROBE in kinds
    assert reply.answered_by.path == LOCAL
    candidate = world.board.candidates(world.catalog.tasks["diabetes_progression"])[0]
    assert world.board.gauge(candidate).breaker.state(world.clock.now) is State.CLOSED


async def test_retries_stay_within_the_budget() -> None:
    """With one candidate that fails half the time, extra attempts are a tenth of the requests."""
    world = World()
    count = 0

    def flaky(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        nonlocal count
        count += 1
        return failure(item, TRITON_DOWN) if count % 3 == 0 else answer(item, tumour=True)

    world.local.behave = flaky
    requests = 300
    for _ in range(requests):
        world.clock.now += 0.01  # 100 requests a second
        try:
            await world.decide("tumour_triage")
        except UnavailableError:
            continue
    extra = len(world.local.items) - requests
    assert 10 <= extra <= requests * 0.1 + 10


async def test_a_slow_first_candidate_is_hedged_and_the_loser_is_metered(tmp_path: Path) -> None:
    """The second candidate is asked when the first is slow; the cancelled one is in the record."""
    world = hedged(tmp_path)
    await measured(world)
    cancelled = asyncio.Event()

    async def hang(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return answer(item)

    world.local.behave = hang
    reply = await world.decide()
    assert reply.answered_by.path == REMOTE
    assert cancelled.is_set()
    primary, hedge = reply.attempts
    assert primary.cancelled
    assert hedge.kind == decision_pb2.ATTEMPT_KIND_HEDGE
    assert [a.cancelled for a in world.audit.log[-1].record.attempts] == [True, False]


async def test_a_fast_first_candidate_is_not_hedged(tmp_path: Path) -> None:
    """While the first answers in time, nobody else is asked."""
    world = hedged(tmp_path)
    await measured(world, 0.05)
    reply = await world.decide()
    assert len(reply.attempts) == 1
    assert world.remote.items == []


async def test_a_hedge_never_leaves_with_restricted_data(tmp_path: Path) -> None:
    """A slow local path is no reason to ask a vendor about restricted data."""
    world = hedged(tmp_path)
    await measured(world)

    async def slow(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        await asyncio.sleep(0.05)
        return answer(item)

    world.local.behave = slow
    reply = await world.decide(data_class=context_pb2.DATA_CLASS_RESTRICTED)
    assert reply.answered_by.path == LOCAL
    assert world.remote.items == []


async def test_a_drained_path_gets_nothing() -> None:
    """An operator's drain excludes the path's candidates, and Explain says so."""
    world = World()
    world.board.drained = frozenset({"local"})
    reply = await world.decide(include_plan=True)
    assert reply.answered_by.path == REMOTE
    refused = reply.plan.entries[-1]
    assert [r.rule for r in refused.refusals] == ["drained"]


async def test_an_attempt_that_hangs_leaves_time_for_the_next() -> None:
    """A hanging first candidate is cut off at its share of the time; the next one answers."""
    world = World()

    async def hang(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        await asyncio.sleep(60)
        return answer(item)

    world.local.behave = hang
    await world.board.refresh()
    from services.chassis.call import Call, Identity
    from tests.unit.router.ports import ask

    call = Call("/m", Identity("alice"), world.clock.now + 0.2)
    call = world.short(call)
    reply = await world.pipeline.decide(ask("diabetes_progression"), call)
    assert [a.reason for a in reply.attempts] == ["ATTEMPT_TIMEOUT", ""]
    assert reply.attempts[0].candidate.path == LOCAL


async def test_a_caller_that_goes_away_cancels_the_attempt() -> None:
    """When the caller is gone the model's call is cancelled, and the breaker learns nothing."""
    world = World()
    started, stopped = asyncio.Event(), asyncio.Event()

    async def hang(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return answer(item)

    world.local.behave = hang
    task = asyncio.create_task(world.decide())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()
    candidate = world.board.candidates(world.catalog.tasks["diabetes_progression"])[0]
    assert world.board.gauge(candidate).in_flight == 0


async def test_silence_opens_the_breaker_although_deadlines_are_short() -> None:
    """A candidate that usually answers at once and falls silent is to blame, not the hurry."""
    world = World()
    await measured(world, 0.002)

    async def silent(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        world.clock.now += 0.6
        raise DeadlineExceededError("TRITON_TIMEOUT", "silence")

    world.local.behave = silent
    for _ in range(8):
        assert (await world.decide()).answered_by.path == REMOTE
    assert len(world.local.items) <= 6


async def test_a_busy_candidate_is_not_taken_for_a_silent_one() -> None:
    """Time-outs of some while others are answered say overload: the breaker stays closed."""
    world = World()
    await measured(world, 0.002)
    turn = 0

    async def busy(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        nonlocal turn
        turn += 1
        if turn % 10 == 0:
            return answer(item)
        world.clock.now += 0.02  # the others wait much longer, but somebody is served all the time
        candidate = world.board.candidates(world.catalog.tasks["diabetes_progression"])[0]
        world.board.gauge(candidate).answered_at = world.clock.now
        world.clock.now += 0.01
        raise DeadlineExceededError("TRITON_TIMEOUT", "waited in vain")

    world.local.behave = busy
    for _ in range(60):
        await world.decide()
    assert len(world.local.items) == 60


async def test_when_everything_is_down_callers_do_not_multiply_it() -> None:
    """At 100 requests a second and every target dead, calls are at most 1.1 of the requests."""
    world = World()
    for path in (world.local, world.remote):
        path.behave = lambda item: failure(item, TRITON_DOWN)
    await world.board.refresh()
    requests = 1000
    for _ in range(requests):
        world.clock.now += 0.01
        with pytest.raises(UnavailableError):
            await world.decide()
    assert len(world.local.items) + len(world.remote.items) <= 1.1 * requests
