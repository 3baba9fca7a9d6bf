"""What is known about every candidate at this moment: readiness, breaker, measured latency.

Readiness comes from the paths' own descriptions, asked for in the background; a path that does
not answer makes its candidates not ready, and nothing else waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError
from services.router.catalog import Catalog, Task
from services.router.plan import Breaker, Candidate, State
from services.router.ports import Inference
from twinpath.inference.v1 import inference_pb2

log = logging.getLogger(__name__)

Key = tuple[str, str, str, str]  # path, provider, model, version


class Board:
    """Keeps the state of all candidates of a catalog."""

    def __init__(self, paths: Mapping[str, Inference], clock: Clock, interval_s: float) -> None:
        self._paths = paths
        self._clock = clock
        self._interval = interval_s
        self._models: dict[str, dict[Key, inference_pb2.ModelDescription]] = {}
        self._down: dict[str, str] = dict.fromkeys(paths, "it has not answered yet")
        self._candidates: dict[int, tuple[Task, tuple[Candidate, ...]]] = {}

    def candidates(self, task: Task) -> tuple[Candidate, ...]:
        """Return the candidates of a task, made once for each version of it."""
        known = self._candidates.get(id(task))
        if known is not None and known[0] is task:
            return known[1]
        made = tuple(
            Candidate(
                id=spec.id,
                path=spec.path,
                model=spec.model,
                version=spec.version,
                provider=spec.provider,
                region=spec.region,
                preference=place,
                cost_nanos=spec.cost_nanos_usd,
                facts={
                    "id": spec.id,
                    "path": spec.path,
                    "model": spec.model,
                    "version": spec.version,
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

    def state(self, candidate: Candidate) -> State:
        """Return a candidate's state."""
        down = self._down.get(candidate.path)
        if down is not None:
            return State(ready=False, reason=f"the {candidate.path} path is away: {down}")
        key = (candidate.path, candidate.provider, candidate.model, candidate.version)
        model = self._models.get(candidate.path, {}).get(key)
        if model is None:
            name = f"{candidate.model} version {candidate.version}"
            return State(ready=False, reason=f"the {candidate.path} path does not know {name}")
        if model.state != inference_pb2.MODEL_STATE_READY:
            return State(ready=False, reason=model.state_reason or "it is not ready")
        return State(ready=True, breaker=Breaker.CLOSED)

    def states(self, candidates: tuple[Candidate, ...]) -> dict[str, State]:
        """Return the state of each candidate, by id."""
        return {candidate.id: self.state(candidate) for candidate in candidates}

    def failed(self, candidate: Candidate, error: ServiceError) -> None:
        """Note that a path as a whole did not answer an attempt; the next look corrects it."""
        if error.reason == "PATH_UNREACHABLE":
            self._down[candidate.path] = error.message

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
        if self._down.pop(path, None) is not None:
            log.info("path answers", extra={"path": path, "models": len(models)})

    async def watch(self, catalog: Callable[[], Catalog]) -> None:
        """Refresh until cancelled; say which candidates of the catalog nobody serves."""
        told: frozenset[str] = frozenset()
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
            await asyncio.sleep(self._interval)
