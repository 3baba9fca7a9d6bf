"""The stand-in vendor as a whole: both ports, and the outage that closes one of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from types import TracebackType
from typing import Self

import grpc.aio
from aiohttp import web

from services.standin import oip_grpc
from services.standin.admin import admin_app
from services.standin.engine import Engine
from services.standin.faults import Schedule
from services.standin.ledger import Ledger
from services.standin.server import Public, Silence
from services.standin.settings import Settings

_LOOPBACK = "127.0.0.1"
_OUTAGE_CHECK_S = 0.02
_SHUTDOWN_S = 2.0
log = logging.getLogger("standin")


class StandIn:
    """The stand-in vendor; `start` and `stop`, or `async with`. Tests run it in their own process.

    Raises:
        ModelLoadError: By the constructor, if a model does not load.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.public = Public(
            settings,
            Engine(settings.models, settings.threads),
            Schedule(time.monotonic, settings.seed),
            Ledger(settings.log_entries, settings.log_bytes),
        )
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._admin: web.AppRunner | None = None
        self._watch: asyncio.Task[None] | None = None
        self._switching = asyncio.Lock()
        self._grpc: grpc.aio.Server | None = None
        self.grpc_port = 0
        self.port = settings.port
        self.admin_port = settings.admin_port

    @property
    def url(self) -> str:
        """Where the public protocol is."""
        return f"http://{self.settings.host}:{self.port}"

    @property
    def admin_url(self) -> str:
        """Where the admin endpoint is."""
        return f"http://{_LOOPBACK}:{self.admin_port}"

    async def start(self) -> Self:
        """Open both ports; raises OSError if one is taken."""
        self._runner = web.AppRunner(
            self.public.app(),
            handler_cancellation=True,
            access_log=None,
            logger=_Quiet(log),
            shutdown_timeout=_SHUTDOWN_S,
        )
        self._admin = web.AppRunner(
            admin_app(self.public, self.settle), access_log=None, shutdown_timeout=_SHUTDOWN_S
        )
        await self._runner.setup()
        await self._admin.setup()
        try:
            await self._open()
            await web.TCPSite(self._admin, _LOOPBACK, self.admin_port).start()
        except OSError:
            await self.stop()
            raise
        self.admin_port = self._admin.addresses[0][1]
        if self.settings.grpc_port is not None:
            self._grpc, self.grpc_port = await oip_grpc.serve(
                self.public, self.settings.host, self.settings.grpc_port
            )
        self._watch = asyncio.create_task(self._keep_settled(), name="standin-outage")
        log.info("stand-in vendor at %s, its admin at %s", self.url, self.admin_url)
        return self

    async def stop(self) -> None:
        """Close both ports and end what is open."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._grpc is not None:
            await self._grpc.stop(0)
        for runner in (self._runner, self._admin):
            if runner is not None:
                await runner.cleanup()
        self.public.engine.close()

    async def settle(self) -> None:
        """Close or open the public port, as the schedule says for now."""
        async with self._switching:
            outage = self.public.schedule.outage()
            if outage and self._site is not None:
                await self._site.stop()
                self._site = None
                self._abort_connections()
                log.info("stand-in vendor: outage, the port is closed")
            elif not outage and self._site is None:
                await self._open()
                log.info("stand-in vendor: outage over")

    def _abort_connections(self) -> None:
        assert self._runner is not None
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _open(self) -> None:
        assert self._runner is not None
        self._site = web.TCPSite(
            self._runner,
            self.settings.host,
            self.port,
            reuse_address=True,
        )
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def _keep_settled(self) -> None:
        while True:
            await asyncio.sleep(_OUTAGE_CHECK_S)
            if self.public.schedule.outage() == (self._site is not None):
                await self.settle()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log without the faults that were asked for."""

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        if not isinstance(kwargs.get("exc_info"), Silence):
            super().exception(msg, *args, **kwargs)  # type: ignore[arg-type]
