"""A router over a world that fails by seed, in virtual time; one seed is one story.

Everything between the caller and the paths is the real thing (steps, plan, breakers, budgets,
limiter, dispatcher, claims' protocol, records); the features, the paths, the log and the state
store are played. `simulate(seed)` returns the story and every invariant that it broke.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.call import Call, Identity
from services.chassis.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
    to_status,
)
from services.router.admission import Admission
from services.router.attempt import Attempter
from services.router.board import Board
from services.router.catalog import Catalog, ObjectiveSpec, ResilienceSpec, load_catalog
from services.router.cutover import Criteria
from services.router.dispatch import Dispatcher
from services.router.grants import GrantSigner
from services.router.limiter import Limiter, LimiterConfig
from services.router.pipeline import Pipeline
from services.router.ports import FeatureQuery, FeatureVector
from services.router.releases import ArmSpec, ReleaseSpec
from services.router.steps import CatalogView, Steps
from tests.unit.router.ports import CATALOG, FakeAudit, FakeFeatures, answer, ask
from tests.unit.router.virtual import VirtualClock, VirtualLoop, run
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2
from twinpath.router.v1 import router_pb2

RESTRICTED = context_pb2.DATA_CLASS_RESTRICTED
SENSITIVE = 1000.0  # the features of restricted requests carry this, wherever they go
TASKS = ("diabetes_progression", "tumour_triage", "hedged", "measured", "split")
ARMS = {"alone": ("diabetes_small",), "vendor_first": ("diabetes_large", "diabetes_small")}
MODES = ("good", "good", "good", "down", "hang", "slow", "flaky", "limited", "garbage", "refusing")
_EPSILON_S = 2e-6  # record times are whole microseconds
_APPEND_S = 0.02  # the longest time that the played log takes


@cache
def catalog() -> Catalog:
    """The real catalog, and more tasks: one hedges, one goes by latency, one has two arms."""
    loaded = load_catalog(CATALOG)
    base = loaded.tasks["diabetes_progression"]
    hedged = base.model_copy(
        update={"name": "hedged", "resilience": ResilienceSpec(hedge=True, retries=2)}
    )
    measured = base.model_copy(
        update={
            "name": "measured",
            "objective": ObjectiveSpec(order=("latency", "cost"), explore=0.05),
            "cutover": Criteria(failure_rate=0.2, p95_s=0.3, minimum_calls=3, return_after_s=0.3),
        }
    )
    arms = {name: ArmSpec(weight=1, candidates=found) for name, found in ARMS.items()}
    divided = base.model_copy(
        update={"name": "split", "release": ReleaseSpec(id="simulated", arms=arms)}
    )
    tasks = {**loaded.tasks, "hedged": hedged, "measured": measured, "split": divided}
    return Catalog(tasks, loaded.policy, loaded.version)


@cache
def key() -> Ed25519PrivateKey:
    """One key for all stories."""
    return Ed25519PrivateKey.generate()


class Features:
    """Marks what is restricted, takes its time, fails now and then."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._plain = FakeFeatures(catalog())

    async def get(self, query: FeatureQuery) -> FeatureVector:
        """See ports.Features."""
        left = query.context.time_left_us / 1e6
        takes = self._chance.uniform(0.001, 0.01)
        fate = self._chance.random()
        if fate < 0.01:
            takes = left
        await asyncio.sleep(min(takes, left))
        if takes >= left:
            raise DeadlineExceededError("FEATURES_TIMEOUT", "too late")
        if fate > 0.98:
            raise UnavailableError("FEATURES_UNREACHABLE", "away")
        patient = query.entity["patient_id"]
        value = SENSITIVE if patient >= SENSITIVE else 1.0
        self._plain.values = dict.fromkeys(self._names(query), value)
        self._plain.data_class = (
            RESTRICTED if patient >= 2 * SENSITIVE else context_pb2.DATA_CLASS_UNSPECIFIED
        )
        return await self._plain.get(query)

    @staticmethod
    def _names(query: FeatureQuery) -> list[str]:
        tasks = catalog().tasks.values()
        return [
            source
            for task in tasks
            if task.feature_service == query.feature_service
            for spec in task.inputs
            for source in spec.sources
        ]


class Path:
    """One path whose mood changes; remembers every call, and how many are open."""

    def __init__(self, name: str, loop: VirtualLoop, chance: random.Random) -> None:
        self._name = name
        self._loop = loop
        self._chance = chance
        self._mood, self._until = "good", loop.now
        self._moods = random.Random(chance.random())
        self.calls: Counter[str] = Counter()
        self.sensitive = 0
        self.open = 0

    def mood(self) -> str:
        """How it is now."""
        while self._loop.now >= self._until:
            self._mood = self._moods.choice(MODES)
            self._until += self._moods.uniform(0.1, 2.0)
        return self._mood

    async def infer(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        """See ports.Inference."""
        self.calls[item.decision_id] += 1
        values = tensors.to_numpy(item.input.tensors[0])
        self.sensitive += bool((values == SENSITIVE).any())
        self.open += 1
        try:
            return await self._answer(item)
        finally:
            self.open -= 1

    async def _answer(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        chance, mood = self._chance, self.mood()
        if mood == "hang":
            await asyncio.sleep(3600)
        await asyncio.sleep(chance.uniform(0.2, 2.0) if mood == "slow" else chance.expovariate(200))
        failed: ServiceError | None = None
        if mood == "down" or (mood == "flaky" and chance.random() < 0.5):
            failed = UnavailableError("TRITON_UNAVAILABLE", "down", retry_after=0.1)
            if chance.random() < 0.3:
                raise UnavailableError("PATH_UNREACHABLE", "nobody there")
        elif mood == "limited":
            failed = ResourceExhaustedError("VENDOR_LIMITED", "later", retry_after=0.5)
        elif mood == "refusing" and chance.random() < 0.3:
            failed = InvalidArgumentError("MODEL_REFUSED_INPUT", "no")
        elif mood == "flaky" and chance.random() < 0.2:
            failed = InternalError("MODEL_FAILED", "broke")
        if failed is not None:
            return inference_pb2.InferResult(id=item.context.id, status=to_status(failed))
        result = answer(item, tumour="tumour" in item.model)
        if mood == "garbage":
            result.outputs[0].raw = np.array([np.inf], "f4").tobytes()
        if mood == "refusing" and chance.random() < 0.2:
            result.finish_reason = inference_pb2.FINISH_REASON_CONTENT_FILTER
        return result

    def infer_stream(self, item: inference_pb2.InferItem) -> Any:
        """No story has a task that streams."""
        raise AssertionError(f"{item.model} was asked for a stream")

    async def describe(self) -> list[inference_pb2.ModelDescription]:
        """See ports.Inference."""
        await asyncio.sleep(0.001)
        if self.mood() == "down" and self._chance.random() < 0.5:
            raise UnavailableError("PATH_UNREACHABLE", "nobody there")
        return _models(self._name)


@cache
def _models(path: str) -> list[inference_pb2.ModelDescription]:
    return [
        inference_pb2.ModelDescription(
            name=c.model,
            version=c.version,
            provider=c.provider,
            state=inference_pb2.MODEL_STATE_READY,
        )
        for task in catalog().tasks.values()
        for c in task.candidates
        if c.path == path
    ]


class Audit(FakeAudit):
    """A log that takes its time and is away now and then."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self.away = chance.random() < 0.2

    async def append(self, entry: audit_pb2.Entry) -> audit_pb2.AppendResult:
        """See ports.Audit: durable only once it returns, and perhaps although it raised."""
        await asyncio.sleep(self._chance.uniform(0, _APPEND_S))
        fate = self._chance.random() if self.away else 1.0
        if fate < 0.05:
            raise UnavailableError("AUDIT_UNREACHABLE", "away")
        result = await super().append(entry)
        if fate < 0.1:
            raise UnavailableError("AUDIT_UNREACHABLE", "gone before it could say so")
        return result


class Claims:
    """Claims that expire, in a store that is away now and then."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        self._loop = loop
        self._chance = chance
        self.held: dict[str, float] = {}

    async def take(self, decision_id: str, ttl_s: float) -> bool:
        """See ports.Claims."""
        await asyncio.sleep(self._chance.uniform(0, 0.002))
        if self._chance.random() < 0.02:
            raise UnavailableError("STATE_STORE_UNAVAILABLE", "away")
        if self.held.get(decision_id, 0.0) > self._loop.now:
            return False
        self.held[decision_id] = self._loop.now + ttl_s
        return True

    async def release(self, decision_id: str) -> None:
        """See ports.Claims."""
        self.held.pop(decision_id, None)


@dataclass
class Caller:
    """One request of the story, and what its caller saw."""

    number: int
    request: router_pb2.InferRequest
    at: float
    left: float
    leaves: float | None
    restricted: bool
    ended: float = 0.0
    reply: router_pb2.InferResponse | None = None
    error: str = "LEFT"

    def line(self) -> str:
        """What the trace says of it: nothing that is random by nature, such as ids."""
        tried = [
            f"{a.candidate.id}:{int(a.kind)}:{a.reason or a.code}:{a.latency_us}"
            for a in (self.reply.attempts if self.reply else ())
        ]
        what = self.reply.answered_by.id if self.reply else self.error
        took = round((self.ended - self.at) * 1e6)
        return f"{self.number} {self.request.task} +{took}us {what} [{' '.join(tried)}]"


@dataclass
class Story:
    """What happened: one line for each request, and each invariant that was broken."""

    trace: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class World:
    """The router of one seed."""

    def __init__(self, seed: int) -> None:
        self.loop = VirtualLoop(seed)
        chance = self.chance = random.Random(seed)
        clock = self.clock = VirtualClock(self.loop)
        self.paths = {
            name: Path(name, self.loop, random.Random(chance.random()))
            for name in ("local", "remote")
        }
        self.audit = Audit(random.Random(chance.random()))
        self.claims = Claims(self.loop, random.Random(chance.random()))
        self.board = Board(self.paths, clock, 0.5)
        view = CatalogView(catalog(), stale=False)
        steps = Steps(
            catalog=lambda: view,
            features=Features(random.Random(chance.random())),
            audit=self.audit,
            board=self.board,
            clock=clock,
            code_version="simulated",
            random=random.Random(chance.random()).random,
        )
        attempter = Attempter(self.paths, self.board, GrantSigner(key(), clock), clock)
        self.limiter = Limiter(LimiterConfig(minimum=4, initial=chance.choice((4, 16)), maximum=16))
        self.pipeline = Pipeline(
            steps=steps,
            claims=self.claims,
            dispatcher=Dispatcher(
                attempter, self.board, clock, random.Random(chance.random()).random
            ),
            admission=Admission(self.limiter, clock),
            clock=clock,
        )

    def callers(self) -> list[Caller]:
        """Draw who asks what, when, and how patiently."""
        chance = self.chance
        busy = chance.random() < 0.05
        out = []
        at = 0.0
        for number in range(chance.randint(30, 50) if busy else chance.randint(3, 9)):
            at += chance.expovariate(100 if busy else 8)
            task = chance.choice(TASKS)
            patient = 17 + chance.randrange(3)
            declared = 0
            match chance.randrange(8):
                case 0:  # the request says so
                    patient, declared = int(SENSITIVE) + 1, RESTRICTED
                case 1:  # its features say so
                    patient = int(2 * SENSITIVE) + 1
            if task == "tumour_triage":  # the task says so
                patient = int(SENSITIVE) + 1
            request = ask(
                task,
                patient,
                data_class=declared,
                priority=chance.randrange(4),
                only_path=chance.choice((0, 0, 0, 0, 1, 2)),
                idempotency_key=chance.choice(("", "", "k1", "k2")),
            )
            left = chance.choice((0.03, 0.2, 1.0, 3.0))
            leaves = chance.uniform(0, left) if chance.random() < 0.1 else None
            out.append(Caller(number, request, at, left, leaves, patient >= SENSITIVE))
        return out

    async def live(self, callers: list[Caller]) -> None:
        """Let the story happen."""
        watching = asyncio.ensure_future(self.board.watch(catalog))
        await asyncio.sleep(0.01)
        await asyncio.gather(*(self._ask(caller) for caller in callers))
        watching.cancel()
        await asyncio.sleep(10)  # what was left behind comes to its end

    async def _ask(self, caller: Caller) -> None:
        await asyncio.sleep(caller.at)
        caller.at = self.loop.now
        identity = Identity("alice", "t", frozenset({"caller"}))
        call = Call("/simulated", identity, caller.at + caller.left)
        asking = asyncio.ensure_future(self.pipeline.decide(caller.request, call))
        if caller.leaves is not None:
            self.loop.call_later(caller.leaves, asking.cancel)
        try:
            caller.reply = await asking
        except ServiceError as error:
            caller.error = f"{error.code.name}/{error.reason}"
        except asyncio.CancelledError:
            caller.error = "LEFT"
        finally:
            caller.ended = self.loop.now


def simulate(seed: int) -> Story:
    """Live one story, and look at what must hold in each."""
    world = World(seed)
    callers = world.callers()
    run(world.loop, world.live(callers))
    story = Story([caller.line() for caller in callers])
    story.broken = [
        *_of_policy(world),
        *_of_arms(world),
        *_of_records(world, callers),
        *_of_rest(world, callers),
    ]
    return story


def _of_policy(world: World) -> list[str]:
    broken = []
    if world.paths["remote"].sensitive:
        broken.append(f"{world.paths['remote'].sensitive} restricted inputs went to the vendor")
    for entry in world.audit.log:
        admitted = {c.id for c in entry.record.candidates}
        tried = {a.candidate.id for a in entry.record.attempts}
        if entry.record.kind == record_pb2.RECORD_KIND_FAILED:
            admitted = {e.candidate.id for e in entry.record.plan.entries if e.rank}
        elif entry.record.kind == record_pb2.RECORD_KIND_OUTCOME:
            admitted |= {e.candidate.id for e in entry.record.plan.entries if e.rank}
        if not tried <= admitted:
            broken.append(f"tried {tried - admitted}, which the plan did not admit")
    return broken


def _of_arms(world: World) -> list[str]:
    broken = []
    seen: dict[int, set[str]] = {}
    for entry in world.audit.log:
        record = entry.record
        if record.task != "split" or not record.plan.entries:
            continue
        seen.setdefault(entry.subject.entity["patient_id"].int64_value, set()).add(record.arm)
        tried = {attempt.candidate.id for attempt in record.attempts}
        if not tried <= set(ARMS[record.arm]):
            broken.append(f"arm {record.arm} tried {tried}")
    broken += [f"an entity has the arms {sorted(arms)}" for arms in seen.values() if len(arms) > 1]
    return broken


def _of_records(world: World, callers: list[Caller]) -> list[str]:
    broken = []
    kinds: dict[str, Counter[int]] = {}
    tried: Counter[str] = Counter()
    for entry in world.audit.log:
        kinds.setdefault(entry.record.decision_id, Counter())[entry.record.kind] += 1
        tried[entry.record.decision_id] += len(entry.record.attempts)
    for decision, counted in kinds.items():
        if counted[record_pb2.RECORD_KIND_OUTCOME] > 1:
            broken.append("a decision has two OUTCOMEs")
        if not decision.startswith("k"):
            ended = sum(counted.values()) - counted[record_pb2.RECORD_KIND_INTENT]
            called = sum(path.calls[decision] for path in world.paths.values())
            if ended and called > tried[decision]:
                broken.append(f"{called} calls were made, {tried[decision]} are in the record")
    for path in world.paths.values():
        for decision in path.calls:
            intended = kinds.get(decision, Counter())[record_pb2.RECORD_KIND_INTENT]
            if not intended and not world.audit.away:  # a log that was away may not have it
                broken.append("a model was asked without an INTENT")
    outputs: dict[str, set[bytes]] = {}
    for caller in callers:
        if caller.reply is None:
            continue
        decision = caller.reply.decision_id
        outputs.setdefault(decision, set()).add(caller.reply.outputs[0].raw)
        if not kinds.get(decision, Counter())[record_pb2.RECORD_KIND_OUTCOME]:
            broken.append(f"request {caller.number} was answered without an OUTCOME")
    broken += ["one key, two answers" for found in outputs.values() if len(found) > 1]
    return broken


def _of_rest(world: World, callers: list[Caller]) -> list[str]:
    broken = []
    for caller in callers:
        # After the deadline nothing is tried; only what was decided is still recorded.
        late = caller.ended - caller.at - caller.left
        if late > 2 * _APPEND_S + _EPSILON_S:
            broken.append(f"request {caller.number} ended {late:.3f} s after its deadline")
        if caller.reply is None or caller.reply.repeated:
            continue
        for attempt in caller.reply.attempts:
            end = attempt.start_time_unix_us / 1e6 + attempt.latency_us / 1e6
            if end > caller.at + caller.left + _EPSILON_S:
                broken.append(f"request {caller.number}: an attempt outlived the deadline")
    for task in catalog().tasks.values():
        for candidate in world.board.candidates(task):
            gauge = world.board.gauge(candidate)
            if gauge.in_flight:
                broken.append(f"{candidate.id}: {gauge.in_flight} in flight when all is over")
            if gauge.breaker._probes:
                broken.append(f"{candidate.id}: a breaker's permit was not given back")
    broken += [f"{name}: a call is still open" for name, p in world.paths.items() if p.open]
    if world.limiter.in_flight:
        broken.append(f"{world.limiter.in_flight} places were not given back")
    if world.claims.held:
        broken.append("a claim was not released")
    return broken
