"""What is known about the models: refreshed in the background, read on every request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from services.chassis.clock import Clock
from services.chassis.errors import FailedPreconditionError, NotFoundError, UnavailableError
from services.local.artifacts import Artifact, Artifacts
from services.local.contracts import Contracts
from services.local.faults import TritonError
from services.local.layout import Layouts
from services.local.replicas import Balancer, Replica
from services.local.spec import ModelSpec
from services.local.traffic import Traffic
from services.local.triton import IndexEntry, TritonServer
from services.local.usage import Counters, Meter, total

log = logging.getLogger(__name__)

READY = "READY"
AWAY = "AWAY"
WARMING = "WARMING"
Key = tuple[str, str]

_AT_ONCE = 8  # descriptions asked for at once
_ON_MISS_S = 0.25  # least time between looks that requests for unknown models cause


@dataclass(frozen=True, slots=True)
class Known:
    """One model at one version.

    Attributes:
        name: The name.
        version: The version; empty for a model of which no version was ever loaded.
        state: Triton's word; READY where a replica can answer; AWAY while Triton does not; WARMING
            until it has answered a warm-up, under explicit control.
        reason: Why not, in Triton's words or ours.
        spec: Its description; None until it was ready once.
        artifact: Its artifact.
        divergence: How it differs from what the catalog's tasks expect; empty: it does not.
        meter: What its inferences take.
        layouts: Layouts of inputs that were found right, by this description of it.
        replicas: On how many replicas it may be asked.
    """

    name: str
    version: str
    state: str
    reason: str = ""
    spec: ModelSpec | None = None
    artifact: Artifact = field(default_factory=Artifact)
    divergence: str = ""
    meter: Meter = field(default_factory=Meter)
    layouts: Layouts = field(default_factory=Layouts)
    replicas: int = 1

    @property
    def serves(self) -> bool:
        """Whether it may be asked."""
        return self.state == READY and self.spec is not None and not self.fault

    @property
    def fault(self) -> str:
        """Why it is refused although it may be loaded; empty: it is not."""
        return self.artifact.fault or self.divergence


@dataclass(frozen=True, slots=True)
class _Inventory:
    """What one replica said."""

    known: Mapping[Key, Known]
    counters: Mapping[Key, Counters]


class Models:
    """The models of all replicas."""

    def __init__(
        self,
        balancer: Balancer[TritonServer],
        artifacts: Artifacts,
        contracts: Contracts,
        clock: Clock,
        timeout_s: float = 2.0,
        traffic: Traffic | None = None,
    ) -> None:
        self.traffic = traffic or Traffic()
        self._balancer = balancer
        self._artifacts = artifacts
        self._contracts = contracts
        self._clock = clock
        self._timeout = timeout_s
        self._known: Mapping[Key, Known] = {}
        self._newest: Mapping[str, Known] = {}  # by name: the newest version that serves
        self._refreshing: asyncio.Task[None] | None = None
        self._last = -1e9
        self.loaded = False

    def all(self) -> list[Known]:
        """Return every model version that is known, by name, then version.

        While no replica answers, none of them serves, whatever the last look said.

        Raises:
            UnavailableError: TRITON_UNAVAILABLE, nothing is known yet.
        """
        if not self.loaded:
            raise _nothing_known()
        known = sorted(self._known.values(), key=lambda k: (k.name, _number(k.version)))
        return [self._seen(each) for each in known]

    def peek(self, name: str, version: str) -> Known | None:
        """Return a model that may be asked, None where `find` would have to look or to refuse."""
        found = self._look_up(name, version)
        if found is None or not found.serves or not self.traffic.takes((name, found.version)):
            return None
        return found

    async def find(self, name: str, version: str) -> Known:
        """Return a model that may be asked; an empty version is the newest that may.

        Raises:
            NotFoundError: MODEL_UNKNOWN.
            UnavailableError: MODEL_UNAVAILABLE, it is known but not loaded; TRITON_UNAVAILABLE,
                nothing is known yet.
            FailedPreconditionError: ARTIFACT_UNTRUSTED, CONTRACT_DIVERGES.
        """
        found = self._look_up(name, version)
        if found is None or not found.serves:
            await self._refresh_on_miss()
            found = self._look_up(name, version)
        if not self.loaded:
            raise _nothing_known()
        if found is None:
            about = {"model": name} | ({"version": version} if version else {})
            raise NotFoundError("MODEL_UNKNOWN", "there is no such model here", metadata=about)
        about = {"model": name, "version": found.version}
        if found.fault:
            reason = "ARTIFACT_UNTRUSTED" if found.artifact.fault else "CONTRACT_DIVERGES"
            raise FailedPreconditionError(
                reason, f"the model is refused: {found.fault}", metadata=about
            )
        if not found.serves or not self.traffic.takes((name, found.version)):
            raise UnavailableError(
                "MODEL_UNAVAILABLE", "the model is not loaded", metadata=about, retry_after=1.0
            )
        return found

    def counters(self) -> list[tuple[str, str, Counters]]:
        """Return (model, version, Triton's counters) of what Triton has counted."""
        return [
            (known.name, known.version, known.meter.counters)
            for known in list(self._known.values())
            if known.meter.counters is not None
        ]

    def known(self, name: str, version: str) -> Known | None:
        """Return a version as `all` does, None where nothing is known of it."""
        found = self._known.get((name, version))
        return found if found is None else self._seen(found)

    def serving(self, name: str) -> str:
        """Return the version that answers requests which name none; empty: none does."""
        version = self.traffic.serving(name)
        if not version and name in self._newest:
            version = self._newest[name].version
        found = self._known.get((name, version))
        return version if found is not None and found.serves else ""

    def _seen(self, known: Known) -> Known:
        if self._balancer.up():
            return known
        return replace(known, state=AWAY, reason="Triton does not answer")

    def _look_up(self, name: str, version: str) -> Known | None:
        version = version or self.traffic.serving(name)
        if version:
            exact = self._known.get((name, version))
            return exact or self._known.get((name, ""))
        return self._newest.get(name)

    async def refresh(self) -> None:
        """Ask every replica that is up what it has. A look that is under way is shared."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def refresh_anew(self) -> None:
        """Ask with a look that begins now, because something was just changed."""
        while self._refreshing is not None and not self._refreshing.done():
            await asyncio.shield(self._refreshing)
        await self.refresh()

    async def _refresh_on_miss(self) -> None:
        """Look anew, because a request names a model that may just have been loaded."""
        if self._balancer.up() and self._clock.monotonic() - self._last >= _ON_MISS_S:
            await self.refresh()

    async def _refresh(self) -> None:
        replicas = self._balancer.up()
        answers = await asyncio.gather(*(self._inventory(replica) for replica in replicas))
        self._last = self._clock.monotonic()
        found = [inventory for inventory in answers if inventory is not None]
        if not found:
            return  # what was known stays known: Triton may be restarting
        merged: dict[Key, Known] = {}
        counted: dict[Key, list[Counters]] = {}
        for inventory in found:
            for key, known in inventory.known.items():
                if key not in merged or (known.serves and not merged[key].serves):
                    merged[key] = known
            for key, counters in inventory.counters.items():
                counted.setdefault(key, []).append(counters)
        await asyncio.to_thread(self._contracts.read)
        for key, known in merged.items():
            if key in counted:
                known.meter.update(total(counted[key]))
            serving = sum(i.known[key].serves for i in found if key in i.known)
            merged[key] = await asyncio.to_thread(self._judge, replace(known, replicas=serving))
        self._known = merged
        rising = sorted(merged.values(), key=lambda k: (k.serves, _number(k.version)))
        self._newest = {known.name: known for known in rising}
        self.loaded = True

    def _judge(self, known: Known) -> Known:
        """Look at a model's files and at what the catalog expects of it. Blocks."""
        artifact = self._artifacts.look(known.name, known.version) if known.version else Artifact()
        divergence = self._contracts.fault(known.spec) if known.spec is not None else ""
        judged = replace(known, artifact=artifact, divergence=divergence)
        before = self._known.get((known.name, known.version))
        if judged.fault and (before is None or before.fault != judged.fault):
            extra = {"model": known.name, "version": known.version, "why": judged.fault}
            log.error("model refused", extra=extra)
        return judged

    async def _inventory(self, replica: Replica[TritonServer]) -> _Inventory | None:
        """Return a replica's models, None if it did not say; notes on it which are ready."""
        try:
            entries = await replica.server.index(self._timeout)
            described = await self._describe(replica.server, entries)
            counters = await replica.server.counters(self._timeout)
        except TritonError as error:
            log.info("replica does not describe itself", extra={"why": str(error)})
            return None
        admitted = self.traffic.admitted(replica.url, described.keys())
        known: dict[Key, Known] = {}
        for entry in entries:
            key = (entry.name, entry.version)
            before = self._known.get(key)
            spec = described.get(key) or (before.spec if before else None)
            meter = before.meter if before else Meter()
            same = before is not None and before.spec == spec
            layouts = before.layouts if before is not None and same else Layouts()
            state = entry.state
            if state == READY and key not in admitted:
                state = WARMING if key in described else "LOADING"
            known[key] = Known(
                entry.name,
                entry.version,
                state,
                entry.reason,
                spec,
                meter=meter,
                layouts=layouts,
            )
        replica.loaded, replica.models = frozenset(described), admitted
        return _Inventory(known, counters)

    async def _describe(
        self, server: TritonServer, entries: Iterable[IndexEntry]
    ) -> dict[Key, ModelSpec]:
        """Return the descriptions of the models that are ready."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(entry: IndexEntry) -> ModelSpec | None:
            async with gate:
                try:
                    return await server.describe(entry.name, entry.version, self._timeout)
                except (TritonError, KeyError) as error:  # unloaded in between; unknown type
                    extra = {"model": entry.name, "version": entry.version, "why": str(error)}
                    log.warning("model does not describe itself", extra=extra)
                    return None

        ready = [entry for entry in entries if entry.state == READY]
        specs = await asyncio.gather(*(one(entry) for entry in ready))
        return {(spec.name, spec.version): spec for spec in specs if spec is not None}


def _nothing_known() -> UnavailableError:
    return UnavailableError("TRITON_UNAVAILABLE", "Triton has not answered yet", retry_after=1.0)


def _number(version: str) -> int:
    return int(version) if version.isdigit() else -1
