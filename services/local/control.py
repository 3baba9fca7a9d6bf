"""Explicit control: versions loaded beside each other, given traffic, drained, unloaded.

Operators ask (`load`, `unload`, `serve`); `watch` brings the same about again on every replica
that restarts, and loads what the catalog's tasks name where nobody has asked for anything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence

from services.chassis.clock import Clock
from services.chassis.errors import FailedPreconditionError, ServiceError, UnavailableError
from services.local.contracts import Contracts
from services.local.install import Installer, Times
from services.local.models import Models
from services.local.replicas import Balancer, Replica
from services.local.triton import TritonServer
from services.local.wishes import Wish, Wishes

log = logging.getLogger(__name__)

_AGAIN_S = 30.0  # between tries to bring about what has failed
_START_S = 0.1
_LOOK_S = 0.5  # between looks at what `Models` has found; they cost nothing


class Control:
    """The life of the models of all replicas. One object in one process owns a Triton."""

    def __init__(
        self,
        balancer: Balancer[TritonServer],
        models: Models,
        installer: Installer,
        contracts: Contracts,
        wishes: Wishes,
        clock: Clock,
        times: Times,
    ) -> None:
        self._balancer = balancer
        self._models = models
        self._traffic = models.traffic
        self._installer = installer
        self._contracts = contracts
        self._wishes = wishes
        self._clock = clock
        self._times = times
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._failed: dict[tuple[str, str], float] = {}  # when, by replica and model
        self._retired: dict[tuple[str, str], float] = {}  # when a version ceased to serve
        self.settled = False  # every model was seen to once, on a replica
        for name in wishes:
            wish = wishes.get(name)
            self._traffic.serve(name, wish.serving if wish is not None else "")

    async def load(self, name: str, version: str, *, aside: bool) -> int:
        """Load a version beside the others, warm it up, then let it serve, unless `aside`.

        Returns:
            The warm-up's time in microseconds; 0: it was warm already.

        Raises:
            ServiceError: as `Installer.check` and `install` do; what was loaded serves on.
            UnavailableError: TRITON_UNAVAILABLE.
        """
        async with self._locks[name]:
            await self._installer.check(name, version)
            replicas = self._up()
            before = self._wish(name)
            versions = before.with_version(version).versions
            self._traffic.serve(name, before.serving)  # not the newest, which comes now
            took = await asyncio.gather(
                *(self._installer.install(replica, name, versions) for replica in replicas),
                return_exceptions=True,
            )
            failures = [found for found in took if isinstance(found, BaseException)]
            if failures:
                await self._restore(replicas, name, before.versions)
                if self._wishes.get(name) is None:
                    self._traffic.serve(name, "")
                raise failures[0]
            wish = (self._wishes.get(name) or before).with_version(version)
            if not aside or not wish.serving:
                wish = wish.serve(version)
            self._keep(name, wish)
            log.info("model loaded", extra={"model": name, "version": version})
            return max(found for found in took if isinstance(found, int))

    async def unload(self, name: str, version: str) -> int:
        """Drain a version and unload it.

        Returns:
            The requests that had not ended when the time to drain was up.

        Raises:
            FailedPreconditionError: MODEL_NOT_LOADED; MODEL_SERVING; MODEL_IN_USE, tasks name it.
            UnavailableError: TRITON_UNAVAILABLE.
        """
        key = (name, version)
        async with self._locks[name]:
            replicas = self._up()
            wish = self._wish(name)
            self._must_hold(wish, name, version)
            if version == wish.serving and len(wish.versions) > 1:
                raise FailedPreconditionError(
                    "MODEL_SERVING",
                    "it serves: let another version do so first",
                    metadata={"model": name, "version": version},
                )
            tasks = [task for task, pinned in self._contracts.pins(name) if pinned == version]
            if tasks:
                raise FailedPreconditionError(
                    "MODEL_IN_USE",
                    f"the catalog names it: {', '.join(tasks)}",
                    metadata={"model": name, "version": version},
                )
            since = self._clock.monotonic() - self._retired.pop(key, -1e9)
            await asyncio.sleep(max(0.0, self._times.grace - since))
            try:
                left = await self._traffic.drain(key, self._times.drain)
                wish = self._wish(name).without_version(version)
                self._keep(name, wish)
                for replica in replicas:
                    self._traffic.cooled(replica.url, key)
                    await self._installer.install(replica, name, wish.versions)
            finally:
                self._traffic.reopen(key)
            log.info("model unloaded", extra={"model": name, "version": version})
            return left

    def serve(self, name: str, version: str) -> tuple[str, str]:
        """Let a loaded version answer the requests that name none; empty: the one before.

        Returns:
            The version that serves now, and the one that did until now.

        Raises:
            FailedPreconditionError: NO_EARLIER_VERSION, MODEL_NOT_LOADED.
        """
        wish = self._wish(name)
        target = version or wish.before
        if not target:
            raise FailedPreconditionError(
                "NO_EARLIER_VERSION",
                "no other version has served before this one",
                metadata={"model": name},
            )
        self._must_hold(wish, name, target)
        if self._models.peek(name, target) is None:
            raise FailedPreconditionError(
                "MODEL_NOT_READY",
                "the version can't answer now",
                metadata={"model": name, "version": target},
            )
        self._keep(name, wish.serve(target))
        log.info("model serves", extra={"model": name, "version": target})
        return target, wish.serving

    async def watch(self) -> None:
        """Bring about what is wished for, again and again, until cancelled."""
        while True:
            await asyncio.sleep(min(self._times.refresh, _LOOK_S) if self.settled else _START_S)
            replicas = self._balancer.up()
            if not replicas or not self._models.loaded:
                continue
            await self._choose()
            await asyncio.gather(*(self._attend(replica) for replica in replicas))
            self.settled = True

    async def _attend(self, replica: Replica[TritonServer]) -> None:
        """See to every model on one replica."""
        named: defaultdict[str, set[str]] = defaultdict(set)
        for name, version in self._contracts.exact():
            named[name].add(version)
        for name, version in replica.loaded:
            if self._wishes.get(name) is None:
                named[name].add(version)
        for name in sorted({*named, *self._wishes}):
            wish = self._wishes.get(name)
            wanted = named[name] | set(() if wish is None else wish.versions)
            versions = sorted(wanted, key=_number)
            have = {v for n, v in replica.loaded if n == name}
            warm = all(self._traffic.is_warm(replica.url, (name, v)) for v in versions)
            if (have == set(versions) and warm) or self._locks[name].locked():
                continue
            since = self._clock.monotonic() - self._failed.get((replica.url, name), -1e9)
            if since < _AGAIN_S and have:
                continue
            async with self._locks[name]:
                await self._bring(replica, name, versions)

    async def _choose(self) -> None:
        """Where a task wants the version that serves and none was ever chosen: take the newest.

        It is kept, so that a version that only comes to lie in the repository serves nobody.
        """
        for name in self._contracts.live():
            if self._wishes.get(name) is not None or self._locks[name].locked():
                continue
            loaded = self._wish(name)
            on_disk = [] if loaded.versions else await asyncio.to_thread(self._installer.on_disk)
            numbers = sorted((v for n, v in on_disk if n == name), key=int)
            if numbers and self._wishes.get(name) is None:
                self._keep(name, Wish((numbers[-1],), numbers[-1]))

    async def _bring(
        self, replica: Replica[TritonServer], name: str, versions: Sequence[str]
    ) -> None:
        """Install what can be, one version after the other: a bad one stops no good one."""
        good: list[str] = []
        for version in versions:
            try:
                await self._installer.check(name, version)
                await self._installer.install(replica, name, [*good, version])
            except ServiceError as error:
                self._failed[replica.url, name] = self._clock.monotonic()
                extra = {"model": name, "version": version, "why": error.message}
                log.error("model can't be loaded", extra={**extra, "reason": error.reason})
            else:
                good.append(version)
        if not versions or len(good) < len(versions):
            await self._restore([replica], name, good)

    async def _restore(
        self, replicas: Sequence[Replica[TritonServer]], name: str, versions: Sequence[str]
    ) -> None:
        """Leave what was there before."""
        for replica in replicas:
            try:
                await self._models.refresh_anew()
                await self._installer.install(replica, name, versions, former=True)
            except ServiceError as error:
                extra = {"model": name, "replica": replica.url, "why": error.message}
                log.warning("the former versions are not certain", extra=extra)

    def wish(self, name: str) -> Wish:
        """Return what is wished for a model, or what there is where nobody wished."""
        return self._wish(name)

    def _wish(self, name: str) -> Wish:
        known = self._wishes.get(name)
        loaded = {
            version
            for replica in self._balancer.replicas
            for found, version in replica.loaded
            if found == name
        }
        if known is not None:
            for _, pinned in self._contracts.pins(name):
                if pinned in loaded:  # for the catalog's sake: a change must not unload it
                    known = known.with_version(pinned)
            return known
        versions = tuple(sorted(loaded, key=_number))
        serving = [v for v in versions if self._models.peek(name, v) is not None]
        return Wish(versions, serving[-1] if serving else "")

    def _keep(self, name: str, wish: Wish) -> None:
        before = self._traffic.serving(name)
        if before and before != wish.serving:
            self._retired[name, before] = self._clock.monotonic()
        self._wishes.put(name, wish)
        self._traffic.serve(name, wish.serving)

    def _must_hold(self, wish: Wish, name: str, version: str) -> None:
        if version not in wish.versions:
            raise FailedPreconditionError(
                "MODEL_NOT_LOADED",
                "the version is not loaded",
                metadata={"model": name, "version": version},
            )

    def _up(self) -> list[Replica[TritonServer]]:
        replicas = self._balancer.up()
        if not replicas:
            raise UnavailableError("TRITON_UNAVAILABLE", "Triton does not answer", retry_after=1.0)
        return replicas


def _number(version: str) -> int:
    return int(version) if version.isdigit() else -1
