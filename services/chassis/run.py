"""Runs a service: settings in, server up, signals heard, everything closed in order.

A service's `__main__` names its settings and a `build` function; all that is created while
building goes on one AsyncExitStack and is closed in reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from services.chassis import call as calls
from services.chassis import inprocess, logs, metrics, telemetry
from services.chassis.boundary import Boundary
from services.chassis.channels import message_options
from services.chassis.door import Door
from services.chassis.handlers import Handlers
from services.chassis.health import Health, Ping
from services.chassis.identity import TokenVerifier, read_access_table, read_public_keys
from services.chassis.server_spans import with_span
from services.chassis.settings import ServiceSettings, load_or_exit

log = logging.getLogger(__name__)
S = TypeVar("S", bound=ServiceSettings)

# Of several services in one process: how long each may take to get ready before the next starts.
_HEAD_START_S = 20.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class Mount:
    """A servicer and where it belongs.

    `name` is the full service name; `add` the generated add_…Servicer_to_server function.
    """

    name: str
    servicer: object
    add: Callable[[Any, Any], None]


@dataclass(frozen=True)
class Service:
    """What a build function gives back.

    `pings` decide about health; `background` run until shutdown, and the service stops when one
    of them fails, because a service without its background work is not what it says.
    """

    mounts: Sequence[Mount]
    pings: Mapping[str, Ping] = field(default_factory=dict)
    background: Sequence[Callable[[], Awaitable[None]]] = ()


Build = Callable[[S, AsyncExitStack], Awaitable[Service]]


@dataclass(frozen=True)
class Running:
    """A service that runs. `address` is where it listens, with the real port."""

    address: str
    health: Health
    handlers: Handlers
    server: grpc.aio.Server
    failed: asyncio.Future[None]


async def _server(settings: ServiceSettings, handlers: Handlers) -> grpc.aio.Server:
    outside = read_public_keys(settings.caller_keys) if settings.caller_keys else []
    verifier = TokenVerifier(read_public_keys(settings.trusted_keys), outside)
    table = read_access_table(settings.access_file)
    # The order and its reasons: see boundary.py.
    boundary = Boundary(settings.max_message_bytes)
    door = Door(verifier, table, settings.default_deadline_s, certificates=_tls(settings))
    await handlers.wrap(
        lambda method, handler: with_span(method, boundary.wrap(method, door.wrap(method, handler)))
    )
    options = [
        *message_options(settings.max_message_bytes),
        ("grpc.server_handshake_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),  # two services on one port is a mistake, not a feature
    ]
    return grpc.aio.server(handlers=[handlers], options=options)


def _tls(settings: ServiceSettings) -> bool:
    return bool(settings.tls_cert and settings.tls_key and settings.tls_ca)


def _bind(server: grpc.aio.Server, settings: ServiceSettings) -> str:
    host = settings.listen.rpartition(":")[0]
    if settings.tls_cert and settings.tls_key and settings.tls_ca:
        credentials = grpc.ssl_server_credentials(
            [(settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())],
            root_certificates=settings.tls_ca.read_bytes(),
            require_client_auth=True,
        )
        port = server.add_secure_port(settings.listen, credentials)
    else:
        port = server.add_insecure_port(settings.listen)
    return f"{host}:{port}"


@contextlib.asynccontextmanager
async def started(settings: S, build: Build[S]) -> AsyncIterator[Running]:
    """Start a service in this process; drain and close it at the end. Tests use it too."""
    async with AsyncExitStack() as stack:
        calls.enter(None)
        service = await build(settings, stack)
        handlers = Handlers()
        health = Health([m.name for m in service.mounts], service.pings, settings.ping_interval_s)
        for mount in service.mounts:
            mount.add(mount.servicer, handlers)
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, handlers)
        names = [m.name for m in service.mounts]
        names += [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME)), handlers
        )
        server = await _server(settings, handlers)
        address = _bind(server, settings)
        await server.start()
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks = [asyncio.ensure_future(work()) for work in (health.watch, *service.background)]
        for task in tasks:
            task.add_done_callback(lambda done: _background_ended(done, failed))
        log.info("listening", extra={"address": address})
        try:
            yield Running(address, health, handlers, server, failed)
        finally:
            # The order of a shutdown:
            # 1. NOT_SERVING, so that nobody new comes;
            health.drain()
            # 2. settle: load balancers need a moment to notice;
            await asyncio.sleep(settings.settle_s)
            # 3. stop: calls in flight get their grace;
            await server.stop(settings.drain_s)
            # 4. background work;
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            failed.cancel()
            # 5. clients and stores: the exit stack, in reverse of their creation;
            # 6. telemetry: `main`, after all that could still write a span.


def _background_ended(task: asyncio.Future[Any], failed: asyncio.Future[None]) -> None:
    if task.cancelled() or failed.done():
        return
    error = task.exception()
    failed.set_exception(error or RuntimeError("background work ended by itself"))


def _settle_memory() -> None:
    """Tell the garbage collector that what is there now stays, and to come by less often.

    A service holds hundreds of thousands of objects that live as long as it does, and each request
    makes thousands that need no collector, because nothing in them goes round in a circle. By
    default a tenth of a router's time went into looking through them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def _run(parts: Sequence[tuple[Any, Build[Any]]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        waiting: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        ends = {waiting}
        for place, (settings, build) in enumerate(parts, 1):
            running = await stack.enter_async_context(started(settings, build))
            stack.enter_context(inprocess.hosted(running.address, running.handlers))
            ends.add(running.failed)
            if place < len(parts):
                await _up(running, {waiting, running.failed})
        _settle_memory()
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for failed in done - {waiting}:
            failed.result()
        log.info("stopping")


async def _up(running: Running, ends: set[asyncio.Future[Any]]) -> None:
    """Give a service time to become SERVING before those start that call it; it may be late."""
    until = time.monotonic() + _HEAD_START_S
    while time.monotonic() < until and not await running.health.check():
        done, _ = await asyncio.wait(ends, timeout=_LOOK_S)
        if done:
            return


def main(name: str, kind: type[S], build: Build[S]) -> None:
    """Run a service until SIGTERM or SIGINT. Exits with 1 if it can't start or go on."""
    host(name, [(kind, build)])


def host(name: str, parts: Sequence[tuple[type[Any], Build[Any]]]) -> None:
    """Run one service or several in this process, as `main` does.

    Each has its own settings and listens on its own address; they start in their order and stop
    in reverse. A call from one to another that started before it does not leave the process.
    """
    settings = [load_or_exit(kind) for kind, _ in parts]
    logs.setup(name, settings[0].log_level)
    provider = telemetry.setup(name)
    try:
        for each in settings:
            metrics.serve(each.metrics_listen)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run([(s, build) for s, (_, build) in zip(settings, parts, strict=True)]))
    except Exception:
        log.exception("cannot go on")
        raise SystemExit(1) from None
    finally:
        if provider is not None:
            provider.shutdown()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
