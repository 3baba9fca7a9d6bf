"""What is known about every candidate at this moment: readiness, breaker, measured latency.

The pure modules decide (breaker, estimator, budget); the board owns one of each for a candidate.
Readiness comes from the paths' own descriptions, asked for in the background; a path that does
not answer makes its candidates not ready, and nothing else waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError
from services.router.breaker import Breaker, Permit
from services.router.breaker import State as Breaking
from services.router.budget import RetryBudget
from services.router.catalog import LIVE, CandidateSpec, Catalog, Task
from services.router.cutover import Criteria, Cutover
from services.router.estimator import LatencyEstimator
from services.router.objective import Objective
from services.router.plan import Candidate, State
from services.router.ports import Inference
from services.router.ramp import Ramp
from twinpath.inference.v1 import inference_pb2

log = logging.getLogger(__name__)

Key = tuple[str, str, str, str]  # path, provider, model, version


# The one place that says which errors are the target's fault. All others tell nothing about its
# health: a bad request stays bad everywhere.
_INFRASTRUCTURE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.ABORTED,
    }
)


# A time-out after less than this, and less than so many times the usual, blames nobody.
_SILENCE_FLOOR_S = 0.25
_SILENCE = 10.0
_CRITERIA_MAX = 64
# Until the next look after something became ready, or ceased to be.
_SOON_S = 0.05


def is_infrastructure(error: ServiceError) -> bool:
    """Tell whether an error says that the target, not the request, is at fault."""
    return error.code in _INFRASTRUCTURE


@dataclass(slots=True)
class Gauge:
    """What is measured of one candidate."""

    breaker: Breaker = field(default_factory=Breaker)
    estimator: LatencyEstimator = field(default_factory=LatencyEstimator)
    budget: RetryBudget = field(default_factory=RetryBudget)
    ramp: Ramp = field(default_factory=Ramp)
    in_flight: int = 0
    answered_at: float = float("-inf")  # when it last said anything, to anybody
    cutovers: dict[Criteria, Cutover] = field(default_factory=dict)  # tasks may differ in them

    def cutover(self, criteria: Criteria) -> Cutover:
        """Return how it keeps to some criteria."""
        found = self.cutovers.get(criteria)
        if found is None:
            if len(self.cutovers) >= _CRITERIA_MAX:
                self.cutovers.clear()  # old versions of the catalog
            found = self.cutovers[criteria] = Cutover(criteria)
        return found


def _key(candidate: Candidate) -> Key:
    return (candidate.path, candidate.provider, candidate.model, candidate.version)


class Board:
    """Keeps the state of all candidates of a catalog."""

    def __init__(self, paths: Mapping[str, Inference], clock: Clock, interval_s: float) -> None:
        self._paths = paths
        self._clock = clock
        self._interval = interval_s
        self._models: dict[str, dict[Key, inference_pb2.ModelDescription]] = {}
        self._serving: dict[str, dict[str, str]] = {}  # by path: the version that serves, by model
        self._down: dict[str, str] = dict.fromkeys(paths, "it has not answered yet")
        self._candidates: dict[int, tuple[Task, tuple[Candidate, ...]]] = {}
        self._objectives: dict[int, tuple[Task, Objective]] = {}
        self._gauges: dict[Key, Gauge] = {}
        self.drained: frozenset[str] = frozenset()

    def candidates(self, task: Task) -> tuple[Candidate, ...]:
        """Return the candidates of a task, made once for each version of it.

        A candidate of version `live` is that of the version which serves, so that policy, plan,
        breaker, cache, grant and record all speak of the version that is really asked.
        """
        known = self._candidates.get(id(task))
        if known is not None and known[0] is task:
            return known[1]
        made = tuple(
            Candidate(
                id=spec.id,
                path=spec.path,
                model=spec.model,
                version=self._version(spec),
                provider=spec.provider,
                region=spec.region,
                preference=place,
                cost_nanos=spec.cost_nanos_usd,
                quality=spec.quality,
                slow_after_s=spec.slow_after_s,
                cutover=spec.cutover or task.cutover,
                facts={
                    "id": spec.id,
                    "path": spec.path,
                    "model": spec.model,
                    "version": self._version(spec),
                    "provider": spec.provider,
                    "region": spec.region,
                    "approvals": list(spec.approvals),
                },
            )
            for place, spec in enumerate(task.candidates, start=1)
        )
        if len(self._candidates) > 1024:
            self._candidates.clear()  # old versions of the catalog
        self._candidates[id(task)] = (task, made)
        return made

    def _version(self, spec: CandidateSpec) -> str:
        """Return a candidate's version; where none serves, `live` stays, and is not ready."""
        if spec.version != LIVE:
            return spec.version
        return self._serving.get(spec.path, {}).get(spec.model, LIVE)

    def objective(self, task: Task) -> Objective:
        """Return a task's objective, made once for each version of it."""
        known = self._objectives.get(id(task))
        if known is not None and known[0] is task:
            return known[1]
        made = task.objective.plain()
        if len(self._objectives) > 1024:
            self._objectives.clear()
        self._objectives[id(task)] = (task, made)
        return made

    def gauge(self, candidate: Candidate) -> Gauge:
        """Return what is measured of a candidate, the same for every task that names it."""
        gauge = self._gauges.get(_key(candidate))
        if gauge is None:
            gauge = self._gauges[_key(candidate)] = Gauge()
        return gauge

    def _ready(self, candidate: Candidate) -> str:
        """Return why a candidate is not ready; empty when it is."""
        down = self._down.get(candidate.path)
        if down is not None:
            return f"the {candidate.path} path is away: {down}"
        model = self._models.get(candidate.path, {}).get(_key(candidate))
        if model is None:
            name = f"{candidate.model} version {candidate.version}"
            return f"the {candidate.path} path does not know {name}"
        if model.state != inference_pb2.MODEL_STATE_READY:
            return model.state_reason or "it is not ready"
        return ""

    def takes_jobs(self, candidate: Candidate) -> bool:
        """Tell whether a candidate's path says that it can be asked in batches."""
        model = self._models.get(candidate.path, {}).get(_key(candidate))
        return model is not None and model.bulk

    def state(self, candidate: Candidate, size_class: int = 0) -> State:
        """Return a candidate's state for inputs of a size class."""
        reason = self._ready(candidate)
        gauge = self.gauge(candidate)
        now = self._clock.monotonic()
        return State(
            ready=not reason,
            reason=reason,
            breaker=gauge.breaker.state(now),
            admits=gauge.breaker.admits(now),
            drained=candidate.path in self.drained,
            p50=gauge.estimator.p50(now, size_class),
            p95=gauge.estimator.p95(now, size_class),
            in_flight=gauge.in_flight,
            slow_start=gauge.in_flight >= gauge.ramp.limit(now),
            cut_over=gauge.cutover(candidate.cutover).away(now) if candidate.cutover else "",
        )

    def states(self, candidates: tuple[Candidate, ...], size_class: int = 0) -> dict[str, State]:
        """Return the state of each candidate, by id."""
        return {candidate.id: self.state(candidate, size_class) for candidate in candidates}

    def begin(self, candidate: Candidate) -> Permit | None:
        """Take leave for one call; None when the breaker has changed its mind since the plan."""
        gauge = self.gauge(candidate)
        now = self._clock.monotonic()
        permit = gauge.breaker.acquire(now)
        if permit is not None:
            gauge.in_flight += 1
        return permit

    def end(
        self,
        candidate: Candidate,
        permit: Permit,
        *,
        seconds: float,
        size_class: int,
        error: ServiceError | None,
        slow_after_s: float,
    ) -> None:
        """Report how a call went."""
        gauge = self.gauge(candidate)
        gauge.in_flight -= 1
        now = self._clock.monotonic()
        ok = error is None or not is_infrastructure(error)
        timed_out = error is not None and error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        if not timed_out:
            gauge.answered_at = now
        if timed_out and seconds < self._patience(gauge, now, seconds, size_class, slow_after_s):
            gauge.breaker.abandon(permit)  # the caller was in a hurry; that is no fault of its own
        else:
            was_closed = gauge.breaker.state(now) is Breaking.CLOSED
            gauge.breaker.record(permit, now, ok=ok, slow=seconds > slow_after_s)
            is_closed = gauge.breaker.state(now) is Breaking.CLOSED
            if is_closed and not was_closed:
                gauge.ramp.begin(now)
            if was_closed and not is_closed:  # an outage: from here on the breaker's matter alone
                for cutover in gauge.cutovers.values():
                    cutover.forget()
            elif was_closed and candidate.cutover is not None:
                gauge.cutover(candidate.cutover).observe(now, ok=ok, seconds=seconds)
        if error is None or timed_out:
            gauge.estimator.observe(now, size_class, seconds, censored=timed_out)
        if error is not None and error.reason == "PATH_UNREACHABLE":
            self._down[candidate.path] = error.message

    def _patience(
        self, gauge: Gauge, now: float, seconds: float, size_class: int, slow_after_s: float
    ) -> float:
        """Return after how many seconds of waiting a candidate is to blame, not its caller.

        Several times what it usually takes, if it said nothing to anybody in all that time: then a
        caller was in no hurry. One that answers others meanwhile is not silent but busy, and that
        is the limiter's business.
        """
        p50 = gauge.estimator.p50(now, size_class)
        if gauge.answered_at > now - seconds:
            return 2 * slow_after_s  # more than slow: a queue before it is not yet its fault
        if p50 is None:
            return slow_after_s
        return min(slow_after_s, max(_SILENCE_FLOOR_S, _SILENCE * p50))

    def abandon(self, candidate: Candidate, permit: Permit) -> None:
        """Report that a call was cancelled: it says nothing about its target."""
        gauge = self.gauge(candidate)
        gauge.in_flight -= 1
        gauge.breaker.abandon(permit)

    def breakers(self) -> list[tuple[str, str, str, int]]:
        """Return (path, model, version, state) of every candidate that was ever looked at."""
        now = self._clock.monotonic()
        return [
            (path, model, version, int(gauge.breaker.state(now)))
            for (path, _, model, version), gauge in list(self._gauges.items())
        ]

    def is_down(self, path: str) -> bool:
        """Tell whether a path as a whole does not answer."""
        return path in self._down

    async def refresh(self) -> None:
        """Ask every path once, at the same time."""
        await asyncio.gather(*(self._ask(path, port) for path, port in self._paths.items()))

    async def _ask(self, path: str, port: Inference) -> None:
        try:
            models = await port.describe()
        except ServiceError as error:
            if path not in self._down:
                log.warning("path is away", extra={"path": path, "why": error.message})
            self._down[path] = error.message
            return
        self._models[path] = {(path, m.provider, m.name, m.version): m for m in models}
        serving = {m.name: m.version for m in models if m.serving}
        if serving != self._serving.get(path):
            self._serving[path] = serving
            self._candidates.clear()
        if self._down.pop(path, None) is not None:
            for key, gauge in self._gauges.items():
                if key[0] == path:
                    gauge.ramp.begin(self._clock.monotonic())
            log.info("path answers", extra={"path": path, "models": len(models)})

    async def watch(self, catalog: Callable[[], Catalog]) -> None:
        """Refresh until cancelled; say which candidates of the catalog nobody serves.

        What is not ready may be starting: the next looks come sooner, then as late as all.
        """
        told: frozenset[str] = frozenset()
        pause = self._interval
        while True:
            await self.refresh()
            missing = frozenset(
                f"{task.name}/{candidate.id}: {state.reason}"
                for task in catalog().tasks.values()
                for candidate in self.candidates(task)
                if not (state := self.state(candidate)).ready
            )
            if missing != told:
                log.info("candidates that are not ready", extra={"candidates": sorted(missing)})
                told = missing
                pause = _SOON_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._interval)
