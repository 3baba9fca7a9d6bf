"""Triton's replicas at work: pings, and calls that may move to another replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from services.chassis.clock import Clock
from services.chassis.errors import DeadlineExceededError, ServiceError, UnavailableError
from services.local import metrics
from services.local.control import Control
from services.local.exchange import Answer, Ask, Metadata
from services.local.faults import TritonError
from services.local.models import Models
from services.local.replicas import Balancer, Replica
from services.local.spec import ModelSpec
from services.local.triton import TritonServer

_AWAY = "TRITON_UNAVAILABLE"


class Fleet:
    """All replicas of Triton."""

    def __init__(
        self,
        balancer: Balancer[TritonServer],
        models: Models,
        clock: Clock,
        *,
        ping_timeout_s: float,
        refresh_s: float,
        control: Control | None = None,
    ) -> None:
        self._control = control
        self.models = models
        self._balancer = balancer
        self._clock = clock
        self._ping_timeout = ping_timeout_s
        self._refresh_s = refresh_s

    async def ping(self) -> None:
        """Ping every replica; health asks this.

        Raises:
            UnavailableError: no replica answers, or none has described its models yet, or under
                explicit control, they were not seen to yet.
        """
        before = set(self._balancer.up())
        await asyncio.gather(*(self._ping(replica) for replica in self._balancer.replicas))
        now = set(self._balancer.up())
        if now - before or not self.models.loaded:
            await self.models.refresh()
        if not now:
            urls = ", ".join(replica.url for replica in self._balancer.replicas)
            raise UnavailableError(_AWAY, f"Triton does not answer at {urls}")
        if not self.models.loaded:
            raise UnavailableError(_AWAY, "Triton has not described its models yet")
        if self._control is not None and not self._control.settled:
            raise UnavailableError("MODELS_LOADING", "the models are being loaded and warmed up")

    async def _ping(self, replica: Replica[TritonServer]) -> None:
        was_up = replica.up
        try:
            live = await replica.server.live(self._ping_timeout)
        except TritonError as error:
            replica.silent(refused=error.error.reason == _AWAY)
        except asyncio.CancelledError:
            # Who asked gave up first: on a busy machine the ping's own time is noticed late.
            replica.silent(refused=False)
            raise
        else:
            if live:
                replica.answered()
            else:
                replica.silent(refused=True)
        finally:
            if was_up and not replica.up:
                replica.server.drop()  # whoever waits for it may still have time to go elsewhere
            metrics.REPLICA_UP.labels(replica.url).set(1 if replica.up else 0)
        if replica.up and not replica.server.shares:
            await replica.server.share()

    async def watch(self) -> None:
        """Refresh what is known about the models, until cancelled."""
        while True:
            await asyncio.sleep(self._refresh_s)
            await self.models.refresh()

    async def infer(self, ask: Ask, deadline: float, metadata: Metadata) -> Answer:
        """Ask a replica; another one if the first fails for reasons of its own.

        Raises:
            ServiceError: as `faults` says.
        """
        return await self._somewhere(
            ask.spec, deadline, lambda server, left: server.infer(ask, left, metadata)
        )

    @asynccontextmanager
    async def stream(
        self, ask: Ask, deadline: float, metadata: Metadata
    ) -> AsyncIterator[AsyncGenerator[Answer]]:
        """Give one replica's stream of responses; another one's, if it fails before the first.

        Raises:
            ServiceError: as `faults` says, in the middle of the stream too.
        """
        answers = self._chunks(ask, deadline, metadata)
        try:
            yield answers
        finally:
            await answers.aclose()

    async def _chunks(
        self, ask: Ask, deadline: float, metadata: Metadata
    ) -> AsyncGenerator[Answer]:
        self._balancer.begin()
        tried: list[Replica[TritonServer]] = []
        replica = self._pick(ask.spec, tried)
        begun = False
        while True:
            left = self._left(deadline)
            replica.in_flight += 1
            answers = replica.server.stream(ask, left, metadata)
            try:
                async for answer in answers:
                    begun = True
                    yield answer
            except TritonError as error:
                another = self._elsewhere(ask.spec, replica, error, tried, begun=begun)
            else:
                return
            finally:
                replica.in_flight -= 1
                await answers.aclose()
            replica = another

    async def _somewhere(
        self,
        spec: ModelSpec,
        deadline: float,
        work: Callable[[TritonServer, float], Awaitable[Answer]],
    ) -> Answer:
        self._balancer.begin()
        tried: list[Replica[TritonServer]] = []
        replica = self._pick(spec, tried)
        while True:
            left = self._left(deadline)
            replica.in_flight += 1
            try:
                answer = await work(replica.server, left)
            except TritonError as error:
                another = self._elsewhere(spec, replica, error, tried)
            else:
                replica.answered()  # as good as a ping, which may be late on a busy machine
                return answer
            finally:
                replica.in_flight -= 1
            replica = another

    def _elsewhere(
        self,
        spec: ModelSpec,
        replica: Replica[TritonServer],
        error: TritonError,
        tried: list[Replica[TritonServer]],
        *,
        begun: bool = False,
    ) -> Replica[TritonServer]:
        """Return where to try again what a replica has failed; `begun`: part of it is out.

        Raises:
            ServiceError: nowhere, or the budget is spent: the call's own error.
        """
        if error.error.reason == _AWAY:
            replica.failed()
        tried.append(replica)
        may = error.elsewhere and not begun
        another = self._balancer.pick((spec.name, spec.version), tried) if may else None
        if another is None or not self._balancer.budget.spend():
            raise error.error from error
        return another

    def _pick(self, spec: ModelSpec, tried: list[Replica[TritonServer]]) -> Replica[TritonServer]:
        replica = self._balancer.pick((spec.name, spec.version), tried)
        if replica is None:
            error: ServiceError = UnavailableError(
                _AWAY,
                "no Triton that holds the model answers",
                metadata={"model": spec.name, "version": spec.version},
                retry_after=1.0,
            )
            raise error
        return replica

    def _left(self, deadline: float) -> float:
        left = deadline - self._clock.monotonic()
        if left <= 0:
            raise DeadlineExceededError("DEADLINE_EXCEEDED", "the item's time is up")
        return left
