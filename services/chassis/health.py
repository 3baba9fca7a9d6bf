"""Health that means something: SERVING only while every dependency answers a real ping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from services.chassis import metrics

Ping = Callable[[], Awaitable[None]]

log = logging.getLogger(__name__)


class Health:
    """Pings the dependencies, and says SERVING or NOT_SERVING by what they answer.

    A ping raises when its dependency does not answer. A service starts NOT_SERVING, becomes
    SERVING when all pings pass, and goes back when one fails; it never gives up.
    """

    def __init__(
        self, services: Sequence[str], pings: Mapping[str, Ping], interval_s: float
    ) -> None:
        self.servicer = HealthServicer()
        self._names = ["", *services]
        self._pings = dict(pings)
        self._interval = interval_s
        self._serving: bool | None = None
        self._draining = False
        self.failures: dict[str, str] = {}

    async def start(self) -> None:
        """Say NOT_SERVING until the first pings have passed."""
        await self._say(serving=False)

    async def check(self) -> bool:
        """Ping every dependency once, at the same time, and say what came out."""
        names = list(self._pings)
        answers = await asyncio.gather(*(self._ping(name) for name in names))
        failures = {name: text for name, text in zip(names, answers, strict=True) if text}
        for name in names:
            metrics.PING_OK.labels(name).set(0 if name in failures else 1)
        for name, text in failures.items():
            if self.failures.get(name) != text:
                log.warning("dependency does not answer", extra={"dependency": name, "why": text})
        for name in self.failures.keys() - failures.keys():
            log.info("dependency answers", extra={"dependency": name})
        self.failures = failures
        serving = not failures and not self._draining
        await self._say(serving=serving)
        return serving

    async def _ping(self, name: str) -> str:
        try:
            await asyncio.wait_for(self._pings[name](), timeout=max(2 * self._interval, 1.0))
        except Exception as error:  # noqa: BLE001 - whatever it is, the dependency is not well
            return str(error) or type(error).__name__
        return ""

    async def _say(self, *, serving: bool) -> None:
        if serving == self._serving:
            return
        self._serving = serving
        metrics.SERVING.set(1 if serving else 0)
        status = health_pb2.HealthCheckResponse.ServingStatus
        value = status.SERVING if serving else status.NOT_SERVING
        for name in self._names:
            await self.servicer.set(name, value)
        log.info("health changed", extra={"serving": serving})

    async def watch(self) -> None:
        """Ping until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(self._interval)

    async def drain(self) -> None:
        """Say NOT_SERVING for good."""
        self._draining = True
        await self._say(serving=False)
