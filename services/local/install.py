"""How versions come onto one replica: files checked, loaded by Triton, warmed up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chassis.clock import Clock
from services.chassis.errors import FailedPreconditionError, NotFoundError, ServiceError
from services.local import warmup
from services.local.artifacts import Artifacts
from services.local.contracts import Contracts
from services.local.faults import TritonError
from services.local.manifest import CONFIG
from services.local.models import Models
from services.local.replicas import Replica
from services.local.traffic import Key
from services.local.triton import TritonServer, with_versions

_LOOK_S = 5.0
_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Times:
    """Limits, in seconds."""

    load: float = 120.0
    warm_up: float = 30.0
    drain: float = 30.0
    refresh: float = 2.0
    grace: float = 5.0


class Installer:
    """Brings versions onto replicas, from a model repository that both see."""

    def __init__(
        self,
        folder: Path,
        artifacts: Artifacts,
        contracts: Contracts,
        models: Models,
        clock: Clock,
        times: Times,
    ) -> None:
        self._folder = folder
        self._contracts = contracts
        self._artifacts = artifacts
        self._models = models
        self._traffic = models.traffic
        self._clock = clock
        self._times = times
        # Texts of config.pbtxt, which Triton applies to all versions of a model at once: what each
        # replica was given last, by model and replica, and with what all versions were well.
        self._given: dict[tuple[str, str], str] = {}
        self._good: dict[str, str] = {}

    def on_disk(self) -> list[Key]:
        """Return the versions that lie in the repository. Blocks."""
        return sorted(
            (version.parent.name, version.name)
            for version in self._folder.glob("*/*")
            if version.name.isdigit() and version.is_dir()
        )

    async def fault(self, name: str, version: str) -> str:
        """Return why a version's files must not be loaded; empty: they may."""
        return (await asyncio.to_thread(self._artifacts.look, name, version)).fault

    async def check(self, name: str, version: str) -> None:
        """Look at a version's files before Triton runs any of them.

        Raises:
            NotFoundError: MODEL_UNKNOWN.
            FailedPreconditionError: ARTIFACT_UNTRUSTED.
        """
        about = {"model": name, "version": version}
        if (name, version) not in await asyncio.to_thread(self.on_disk):
            raise NotFoundError(
                "MODEL_UNKNOWN", "the model repository has no such version", metadata=about
            )
        fault = await self.fault(name, version)
        if fault:
            raise FailedPreconditionError(
                "ARTIFACT_UNTRUSTED", f"the model is refused: {fault}", metadata=about
            )

    async def install(
        self,
        replica: Replica[TritonServer],
        name: str,
        versions: Sequence[str],
        *,
        former: bool = False,
    ) -> int:
        """Have exactly these versions loaded on a replica, and each of them warm.

        Versions that were loaded before work on meanwhile. After an error nothing is certain but
        that: install the former versions again.

        Args:
            replica: the replica.
            name: the model.
            versions: its versions; none: the model is unloaded.
            former: with the configuration that was good before, whatever is on disk by now.

        Returns:
            The slowest new version's warm-up, in microseconds; 0: all were warm.

        Raises:
            FailedPreconditionError: MODEL_LOAD_FAILED, CONTRACT_DIVERGES, WARM_UP_FAILED.
        """
        have = {v for n, v in replica.loaded if n == name}
        given, good = self._given.get((name, replica.url)), self._good.get(name)
        if set(versions) != have or (former and versions and given != good):
            await self._load(replica, name, versions, good if former else None)
            await self._models.refresh_anew()
        slowest = 0
        for version in versions:
            slowest = max(slowest, await self._ready(replica, (name, version)))
        if slowest:
            await self._models.refresh_anew()
        if versions and (name, replica.url) in self._given:
            self._good[name] = self._given[name, replica.url]
        return slowest

    async def _load(
        self,
        replica: Replica[TritonServer],
        name: str,
        versions: Sequence[str],
        text: str | None,
    ) -> None:
        server, timeout = replica.server, self._times.load
        try:
            if not versions:
                await server.unload(name, timeout)
                return
            if text is None:
                text = await asyncio.to_thread(self._read, name)
            self._given[name, replica.url] = text
            config = with_versions(text, versions, self._contracts.budget_ms(name))
            await server.load(name, timeout, config)
        except TritonError as error:
            # Triton's own text may be about any of the versions: the index knows which.
            newest = versions[-1] if versions else ""
            raise await self._failed(replica, (name, newest), error.error) from error
        except (OSError, ValueError) as error:
            raise FailedPreconditionError(
                "MODEL_LOAD_FAILED", f"{name}: {error}", metadata={"model": name}
            ) from error

    def _read(self, name: str) -> str:
        path = self._folder / name / CONFIG
        return path.read_text(encoding="utf-8") if path.exists() else f'name: "{name}"'

    async def _ready(self, replica: Replica[TritonServer], key: Key) -> int:
        """See that a version is loaded, fits its tasks and is warm; returns the warm-up's µs."""
        about = {"model": key[0], "version": key[1]}
        if key not in replica.loaded:
            raise await self._failed(replica, key, None)
        known = self._models.known(*key)
        if known is not None and known.divergence:
            raise FailedPreconditionError(
                "CONTRACT_DIVERGES", f"the model is refused: {known.divergence}", metadata=about
            )
        if self._traffic.is_warm(replica.url, key):
            return 0
        return await self.warm(replica, key)

    async def warm(self, replica: Replica[TritonServer], key: Key) -> int:
        """Ask a loaded version once on a replica; returns how long that took, in microseconds.

        Raises:
            FailedPreconditionError: WARM_UP_FAILED.
        """
        name, version = key
        started = self._clock.monotonic()
        try:
            spec = await replica.server.describe(name, version, _LOOK_S)
            values = await asyncio.to_thread(warmup.example, self._folder / name / version)
            await warmup.warm_up(replica.server, spec, values, self._times.warm_up)
        except (TritonError, ServiceError) as caught:
            error = caught.error if isinstance(caught, TritonError) else caught
            raise FailedPreconditionError(
                "WARM_UP_FAILED",
                f"it was loaded, but its warm-up failed: {error.reason}: {error.message}",
                metadata={"model": name, "version": version},
            ) from caught
        self._traffic.warmed(replica.url, key)
        return max(1, int((self._clock.monotonic() - started) * 1e6))

    async def _failed(
        self, replica: Replica[TritonServer], key: Key, error: ServiceError | None
    ) -> ServiceError:
        """Return the error of a load; with what Triton wrote about it, which saw no input."""
        if error is not None and error.reason in ("TRITON_UNAVAILABLE", "TRITON_TIMEOUT"):
            return error
        why = ""
        try:
            index = await replica.server.index(_LOOK_S)
        except TritonError:
            index = []
        for entry in index:
            if (entry.name, entry.version) == key and entry.reason:
                why = " ".join(entry.reason.split())[:_REASON_CHARS]
        return FailedPreconditionError(
            "MODEL_LOAD_FAILED",
            f"Triton can't load it: {why}" if why else "Triton can't load it",
            metadata={"model": key[0], "version": key[1]},
        )
