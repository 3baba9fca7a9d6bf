"""The response cache: around an admitted candidate, opt-in, encrypted, and never in the way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from services.chassis.errors import ServiceError, UnavailableError
from services.router.attempt import Attempter
from services.router.cache import ResponseCache
from services.router.catalog import CacheSpec, Task
from services.router.dispatch import Dispatcher
from services.router.pipeline import Pipeline
from tests.unit.router.ports import World, answer, ask, failure
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import inference_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE
CACHED = decision_pb2.ATTEMPT_KIND_CACHE
KEY = b"k" * 32
TASK = "diabetes_progression"


class Kept:
    """A store in memory; `away` makes it forgetful."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.ttls: list[float] = []
        self.away = False

    async def get(self, name: str) -> bytes | None:
        """See cache.Store."""
        return None if self.away else self.values.get(name)

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """See cache.Store."""
        if not self.away:
            self.values[name] = value
            self.ttls.append(ttl_s)


class Caching(World):
    """A world with a cache, whose diabetes task opts in."""

    def __init__(self, spec: CacheSpec | None = None) -> None:
        super().__init__()
        self.opt_in(TASK, spec or CacheSpec(ttl_s=60))
        self.kept = Kept()
        self.cache = ResponseCache(self.kept, KEY)
        paths = {"local": self.local, "remote": self.remote}
        attempter = Attempter(paths, self.board, self.signer, self.clock, self.cache)
        before = self.pipeline
        self.pipeline = Pipeline(
            steps=self.steps,
            claims=self.claims,
            dispatcher=Dispatcher(attempter, self.board, self.clock, lambda: 0.0),
            admission=before._admission,
            clock=self.clock,
        )

    def opt_in(self, name: str, spec: CacheSpec | None) -> None:
        """Set a task's cache."""
        self.catalog.tasks[name] = self.catalog.tasks[name].model_copy(update={"cache": spec})


async def test_the_same_input_is_answered_from_the_cache() -> None:
    """A hit asks no model, costs nothing, and is recorded like any answer."""
    world = Caching()
    first = await world.decide()
    second = await world.decide()
    assert len(world.local.items) == 1
    assert (first.cached, second.cached) == (False, True)
    assert second.outputs == first.outputs
    assert [a.kind for a in second.attempts] == [CACHED]
    assert not second.HasField("cost")
    assert world.audit.kinds() == ["INTENT", "OUTCOME"] * 2
    assert world.audit.log[-1].record.cached
    assert world.audit.log[-1].record.decision_id == second.decision_id != first.decision_id
    assert world.kept.ttls == [60]


async def test_without_the_tasks_word_nothing_is_kept() -> None:
    """A task that does not opt in is asked anew each time."""
    world = Caching()
    world.opt_in(TASK, None)
    await world.decide()
    await world.decide()
    assert len(world.local.items) == 2
    assert world.kept.values == {}


@pytest.mark.parametrize("why", ["policy", "path", "drained"])
async def test_a_hit_never_serves_a_candidate_that_is_refused(why: str) -> None:
    """What was kept for a candidate is out of reach once policy, the request or a person says no."""
    world = Caching()
    assert (await world.decide(only_path=REMOTE)).answered_by.path == REMOTE
    assert (await world.decide(only_path=REMOTE)).cached
    if why == "policy":
        with pytest.raises(ServiceError) as caught:
            await world.decide(only_path=REMOTE, residency="us")
        assert "residency_is_kept" in caught.value.metadata["diabetes_large"]
    elif why == "path":
        reply = await world.decide(only_path=LOCAL)
        assert reply.answered_by.path == LOCAL
        assert not reply.cached
    else:
        world.board.drained = frozenset({"remote"})
        with pytest.raises(ServiceError):
            await world.decide(only_path=REMOTE)
    assert len(world.remote.items) == 1


async def test_restricted_answers_are_kept_only_where_the_task_says_so() -> None:
    """A request made stricter is not kept, and is not answered from what was kept before."""
    world = Caching()
    await world.decide()
    reply = await world.decide(data_class=context_pb2.DATA_CLASS_RESTRICTED)
    assert not reply.cached
    assert len(world.kept.values) == 1
    world.opt_in(TASK, CacheSpec(ttl_s=60, restricted=True))
    assert (await world.decide(data_class=context_pb2.DATA_CLASS_RESTRICTED)).cached


def test_a_restricted_task_must_mean_it() -> None:
    """A restricted task with a cache that does not say `restricted: true` does not load."""
    plain = World().catalog.tasks["tumour_triage"].model_dump(by_alias=True)
    with pytest.raises(ValidationError, match="restricted: true"):
        Task.model_validate({**plain, "cache": {"ttl_s": 1}})
    Task.model_validate({**plain, "cache": {"ttl_s": 1, "restricted": True}})


@pytest.mark.parametrize("change", ["input", "views", "tenant", "model"])
async def test_whatever_the_answer_depends_on_is_in_the_key(change: str) -> None:
    """Another input, feature view version, tenant or model version is another answer."""
    world = Caching()
    await world.decide()
    if change == "input":
        world.features.values["diabetes_baseline__bmi"] = 2.0
        assert not (await world.decide()).cached
    elif change == "tenant":
        decision = world.steps.admit(ask(TASK), world.call(), "")
        await world.steps.enrich(decision)
        world.steps.assemble(decision)
        candidate = world.board.candidates(decision.task)[0]
        ours = world.cache.place(decision, candidate)
        decision.caller.tenant = "another"
        assert world.cache.place(decision, candidate) != ours
    elif change == "model":
        task = world.catalog.tasks[TASK]
        newer = task.candidates[0].model_copy(update={"version": "2"})
        candidates = [newer, *task.candidates[1:]]
        world.catalog.tasks[TASK] = task.model_copy(update={"candidates": candidates})
        assert not (await world.decide()).cached
    else:
        from dataclasses import replace

        get = world.features.get

        async def newer_views(query: Any) -> Any:
            return replace(await get(query), views=(("view", "another hash", 1),))

        world.features.get = newer_views  # type: ignore[method-assign]
        assert not (await world.decide()).cached


async def test_values_are_encrypted_and_bound_to_their_place() -> None:
    """The store sees no output and no input; a value that was moved or changed is a miss."""
    world = Caching()
    reply = await world.decide()
    ((name, value),) = world.kept.values.items()
    assert reply.outputs[0].raw not in value
    assert TASK not in name
    assert reply.input_digest.hex() not in name
    world.kept.values[name] = value[:-1] + bytes([value[-1] ^ 1])
    assert not (await world.decide()).cached
    world.features.values["diabetes_baseline__bmi"] = 2.0
    await world.decide()
    other = next(n for n in world.kept.values if n != name)
    world.kept.values[other] = world.kept.values[name]
    assert not (await world.decide()).cached
    with pytest.raises(ValueError, match="32 bytes"):
        ResponseCache(world.kept, b"short")


async def test_a_store_that_is_away_is_a_miss() -> None:
    """Without the store the model is asked, and nobody notices."""
    world = Caching()
    await world.decide()
    world.kept.away = True
    assert not (await world.decide()).cached


async def test_what_no_longer_fits_the_contract_is_not_given() -> None:
    """A kept output passes the same filter as any other."""
    world = Caching()
    await world.decide()
    task = world.catalog.tasks[TASK]
    stricter = [task.outputs[0].model_copy(update={"max": 100.0})]
    world.catalog.tasks[TASK] = task.model_copy(update={"outputs": stricter})
    with pytest.raises(UnavailableError):
        await world.decide()
    assert len(world.local.items) == 2


async def test_equal_questions_at_once_ask_the_model_once() -> None:
    """Of ten equal requests that overlap, one asks; all have an OUTCOME of their own."""
    world = Caching()
    gate = asyncio.Event()

    async def slow(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        await gate.wait()
        return answer(item)

    world.local.behave = slow
    await world.board.refresh()
    asking = [
        asyncio.ensure_future(world.pipeline.decide(ask(TASK), world.call())) for _ in range(10)
    ]
    for _ in range(50):
        await asyncio.sleep(0)
    gate.set()
    replies = await asyncio.gather(*asking)
    assert len(world.local.items) == 1
    assert sorted(reply.cached for reply in replies) == [False] + [True] * 9
    assert world.audit.kinds().count("OUTCOME") == 10


async def test_failures_are_not_kept() -> None:
    """An error reaches the next candidate as ever, and the next request asks anew."""
    world = Caching()
    world.local.behave = lambda item: failure(item, UnavailableError("TRITON_UNAVAILABLE", "x"))
    assert (await world.decide()).answered_by.path == REMOTE
    world.local.behave = None
    reply = await world.decide()
    assert reply.answered_by.path == LOCAL
    assert not reply.cached


@pytest.mark.parametrize("key", ["", "k1"])
async def test_kept_answers_teach_nothing_about_latency_or_load(key: str) -> None:
    """A hit, and a key's stored reply, move neither the limit nor a candidate's prediction."""
    world = Caching()
    reply = await world.decide(idempotency_key=key)
    kind = world.limiter._kinds[TASK]
    small = world.board.candidates(world.catalog.tasks[TASK])[0]
    learned = world.board.gauge(small).estimator
    seen = [h.count for h in learned._classes if h is not None]
    assert (kind.count, seen) == (1, [1])
    again = await world.decide(idempotency_key=key)
    assert again.repeated if key else again.cached
    assert again.outputs == reply.outputs
    assert kind.count == 1
    assert [h.count for h in learned._classes if h is not None] == [1]


def test_a_streaming_task_can_not_have_a_cache() -> None:
    """Its chunks are the point; it is refused at load with the reason."""
    task = Caching().catalog.tasks["note_summary"]
    with pytest.raises(ValidationError, match="can't be kept"):
        Task.model_validate(task.model_dump(by_alias=True) | {"cache": {"ttl_s": 1}})
