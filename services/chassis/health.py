"""Health that means something: SERVING only while every dependency answers a real ping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import metrics
from services.chassis.errors import NotFoundError

Ping = Callable[[], Awaitable[None]]

log = logging.getLogger(__name__)


_STATUS = health_pb2.HealthCheckResponse.ServingStatus


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The standard health service: one state for the server and each service that it mounts.

    Not grpcio-health-checking's own: there, one watcher that leaves deafens the others of the
    same service, and watchers hold up every shutdown for its whole grace.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self._status = _STATUS.NOT_SERVING
        self._closed = False
        self._changed = asyncio.Event()

    def say(self, *, serving: bool) -> None:
        """Set the state, and wake who watches."""
        self._status = _STATUS.SERVING if serving else _STATUS.NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Say NOT_SERVING for the last time; watches end after they have heard it."""
        self._closed = True
        self.say(serving=False)

    async def Check(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer with the state now. Raises NotFoundError for a service that is not here."""
        del context
        if request.service not in self._names:
            raise NotFoundError("SERVICE_UNKNOWN", "no such service is mounted here")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Give the state now and at each change, until the server goes down."""
        del context
        said = None
        while True:
            changed = self._changed
            known = request.service in self._names
            status = self._status if known else _STATUS.SERVICE_UNKNOWN
            if status != said:
                said = status
                yield health_pb2.HealthCheckResponse(status=status)
            if self._closed:
                return
            await changed.wait()


class Health:
    """Pings the dependencies, and says SERVING or NOT_SERVING by what they answer.

    A ping raises when its dependency does not answer. A service starts NOT_SERVING, becomes
    SERVING when all pings pass, and goes back when one fails; it never gives up.
    """

    def __init__(
        self, services: Sequence[str], pings: Mapping[str, Ping], interval_s: float
    ) -> None:
        self.servicer = HealthServicer(["", *services])
        self._name = services[0]
        self._pings = dict(pings)
        self._interval = interval_s
        self._serving = False
        self._draining = False
        self.failures: dict[str, str] = {}

    async def check(self) -> bool:
        """Ping every dependency once, at the same time, and say what came out."""
        names = list(self._pings)
        answers = await asyncio.gather(*(self._ping(name) for name in names))
        failures = {name: text for name, text in zip(names, answers, strict=True) if text}
        for name in names:
            metrics.PING_OK.labels(self._name, name).set(0 if name in failures else 1)
        for name, text in failures.items():
            if self.failures.get(name) != text:
                log.warning("dependency does not answer", extra={"dependency": name, "why": text})
        for name in self.failures.keys() - failures.keys():
            log.info("dependency answers", extra={"dependency": name})
        self.failures = failures
        serving = not failures and not self._draining
        self._say(serving=serving)
        return serving

    async def _ping(self, name: str) -> str:
        try:
            await asyncio.wait_for(self._pings[name](), timeout=max(2 * self._interval, 1.0))
        except Exception as error:  # noqa: BLE001 - whatever it is, the dependency is not well
            return str(error) or type(error).__name__
        return ""

    def _say(self, *, serving: bool) -> None:
        if serving == self._serving:
            return
        self._serving = serving
        metrics.SERVING.labels(self._name).set(1 if serving else 0)
        self.servicer.say(serving=serving)
        log.info("health changed", extra={"serving": serving})

    async def watch(self) -> None:
        """Ping until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(self._interval)

    def drain(self) -> None:
        """Say NOT_SERVING for good."""
        self._draining = True
        self._say(serving=False)
        self.servicer.close()
