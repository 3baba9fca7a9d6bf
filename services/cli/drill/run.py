"""Runs one drill: load at a fixed rate, a fault in its middle, and what callers noticed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

from services.chassis.errors import from_rpc_error
from services.cli.drill import mix
from services.cli.drill.arena import Arena
from services.cli.drill.load import Answer, evenly, offer
from services.cli.drill.scenes import DRILLS, Drill
from services.cli.drill.stats import Phase, Report, Sample, Transition, phase, report
from services.cli.drill.targets import Check, judge
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.router.v1 import router_pb2

DEADLINE_S = 1.0
FAULT_FROM, FAULT_TO = 1 / 6, 2 / 3
_SETTLE_S = 1.0
_CAPACITY_S = 4.0
_CALLERS = 6
_PAUSE_S = 0.1
_PATHS = {context_pb2.PATH_LOCAL: "local", context_pb2.PATH_REMOTE: "remote"}


@dataclass(slots=True)
class Watch:
    """When the plan left the broken candidate out: read from the replies' own plans."""

    candidate: str
    seen: list[tuple[float, bool]] = field(default_factory=list)

    def note(self, asked_s: float, plan: decision_pb2.Plan) -> None:
        """Note what one plan says about the candidate, at the time of its request."""
        for entry in plan.entries:
            if entry.candidate.id != self.candidate or self._by_policy(entry):
                continue
            closed = entry.breaker == decision_pb2.BREAKER_STATE_CLOSED
            unhealthy = any(r.kind == decision_pb2.REFUSAL_KIND_HEALTH for r in entry.refusals)
            self.seen.append((asked_s, unhealthy or not closed))

    @staticmethod
    def _by_policy(entry: decision_pb2.PlanEntry) -> bool:
        return any(r.kind == decision_pb2.REFUSAL_KIND_POLICY for r in entry.refusals)

    def transitions(self) -> list[Transition]:
        """Return the changes, in order."""
        out: list[Transition] = []
        away = False
        for at, now_away in sorted(self.seen):
            if now_away != away:
                away = now_away
                out.append(Transition(at, self.candidate, opened=away))
        return out


@dataclass(frozen=True, slots=True)
class Result:
    """What one drill showed. `report` is about the counted requests."""

    name: str
    report: Report
    by_label: dict[str, Phase]
    codes_by_label: dict[str, dict[str, int]]
    checks: list[Check]
    restricted_asked: int
    restricted_at_vendor: int
    rate: float
    seconds: float

    @property
    def held(self) -> bool:
        """Whether every target was met."""
        return all(check.held for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`."""
        return {
            "drill": self.name,
            "about": DRILLS[self.name].about,
            "held": self.held,
            "checks": [asdict(check) for check in self.checks],
            "rate_per_s": self.rate,
            "seconds": self.seconds,
            "deadline_s": DEADLINE_S,
            "restricted_asked": self.restricted_asked,
            "restricted_at_vendor": self.restricted_at_vendor,
            "by_label": {label: asdict(part) for label, part in self.by_label.items()},
            "codes_by_label": self.codes_by_label,
            "report": self.report.as_json(),
        }


def starts_of(drill: Drill, rate: float, seconds: float) -> list[float]:
    """Return the intended starts: the rate, and `surge` times it while the fault lasts."""
    fault, healed = seconds * FAULT_FROM, seconds * FAULT_TO
    if drill.surge == 1:
        return evenly(rate, seconds)
    before = evenly(rate, fault)
    during = [fault + start for start in evenly(rate * drill.surge, healed - fault)]
    after = [healed + start for start in evenly(rate, seconds - healed)]
    return [*before, *during, *after]


async def run(arena: Arena, name: str, *, seconds: float, rate: float) -> Result:
    """Run one drill on a whole mesh, and leave it whole.

    Raises:
        RuntimeError: the mesh did not become whole, before or after.
    """
    drill = DRILLS[name]
    await arena.whole()
    await arena.stage.prefer(mix.DIABETES, drill.prefer)
    await warm(arena, drill)
    if drill.load is not None:
        rate = drill.load * await capacity(arena)
    await arena.forget()
    watch = Watch(drill.broken)
    starts = starts_of(drill, rate, seconds)
    zero = asyncio.get_running_loop().create_future()
    fault = asyncio.create_task(_break(arena, drill, seconds, zero))
    ask = _asker(arena, drill.question, watch, starts)
    try:
        samples = await offer(
            ask, starts, label_of=lambda n: drill.question(n).label, on_start=zero.set_result
        )
        healed = await fault
        left = mix.restricted_at_vendor(await arena.vendor_log())
    finally:
        fault.cancel()
        await arena.whole()
    counted = [sample for sample in samples if sample.label in drill.counted]
    found = report(
        counted,
        fault_s=seconds * FAULT_FROM,
        healed_s=healed,
        end_s=seconds,
        transitions=watch.transitions(),
    )
    labels = sorted({sample.label for sample in samples})
    return Result(
        name=name,
        report=found,
        by_label={label: phase(_of(samples, label)) for label in labels},
        codes_by_label={
            label: dict(Counter(sample.code for sample in _of(samples, label))) for label in labels
        },
        checks=judge(drill.targets, found, left),
        restricted_asked=len(_of(samples, mix.RESTRICTED)),
        restricted_at_vendor=left,
        rate=rate,
        seconds=seconds,
    )


def _of(samples: Sequence[Sample], label: str) -> list[Sample]:
    return [sample for sample in samples if sample.label == label]


async def warm(arena: Arena, drill: Drill) -> None:
    """Ask for a second what will be asked, so that latencies are known and nothing is cold."""
    ask = _asker(arena, drill.question, Watch(""), evenly(40, _SETTLE_S))
    await offer(ask, evenly(40, _SETTLE_S))


async def capacity(arena: Arena) -> float:
    """Return how many requests a second the slow model answers: a few callers, one after another.

    On a quiet machine that is 1 / SLOW_S; on a busy one it is less, and what counts is the ratio.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + _CAPACITY_S
    answered = 0

    async def caller(number: int) -> None:
        nonlocal answered
        while loop.time() < end:
            try:
                await arena.stage.router.Infer(mix.about(mix.SLOW, number), timeout=DEADLINE_S)
                answered += 1
            except grpc.RpcError:
                await asyncio.sleep(_PAUSE_S)  # a refusal costs nothing; don't flood

    await asyncio.gather(*(caller(number) for number in range(_CALLERS)))
    await asyncio.sleep(_SETTLE_S)
    return max(answered / _CAPACITY_S, 1.0)


async def _break(arena: Arena, drill: Drill, seconds: float, zero: asyncio.Future[float]) -> float:
    """Break at one sixth, mend at two thirds; return when it was mended, from the load's start."""
    loop = asyncio.get_running_loop()
    start = await zero
    await asyncio.sleep(max(0.0, start + seconds * FAULT_FROM - loop.time()))
    await drill.begin(arena)
    try:
        await asyncio.sleep(max(0.0, start + seconds * FAULT_TO - loop.time()))
    finally:
        await drill.end(arena)
    return loop.time() - start


def _asker(
    arena: Arena,
    question: Callable[[int], mix.Question],
    watch: Watch,
    starts: Sequence[float],
) -> Callable[[int], Any]:
    async def ask(number: int) -> Answer:
        asked = question(number)
        try:
            reply: router_pb2.InferResponse = await arena.stage.router.Infer(
                asked.request, timeout=DEADLINE_S
            )
        except grpc.RpcError as failed:
            error = from_rpc_error(failed)
            tried = len(error.metadata) if error.reason == "ALL_CANDIDATES_FAILED" else 0
            code = f"{error.code.name} {error.reason}"
            return Answer(ok=False, code=code, attempts=tried, label=asked.label)
        watch.note(starts[number], reply.plan)
        return Answer(
            ok=True,
            attempts=len(reply.attempts),
            label=asked.label,
            path=_PATHS.get(reply.answered_by.path, ""),
        )

    return ask
