"""A service's life: health by real pings, watchers, orderly drain, background work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import errors, run
from services.chassis.settings import ServiceSettings
from tests.support import MeshKeys, client, free_port, refusal, settings_for, start_service
from tests.unit.chassis.probe import SERVICE, build_probe, request, stream_request
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

Stub = inference_pb2_grpc.InferenceStub
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Dependency:
    """Answers pings, or not."""

    def __init__(self, *, up: bool) -> None:
        self.up = up

    async def ping(self) -> None:
        """Raise while it is down."""
        if not self.up:
            raise ConnectionError("connection refused")


async def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true; the test's own limit ends a wait in vain."""
    while not true():  # noqa: ASYNC110 - what it waits for sets no event
        await asyncio.sleep(0.01)


async def check(channel: grpc.aio.Channel, service: str = SERVICE) -> int:
    """Return what the health service says."""
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_follows_the_dependencies_there_and_back(keys: MeshKeys) -> None:
    """Down at start: the service is up, NOT_SERVING, recovers by itself, and can go back."""
    one, two = Dependency(up=True), Dependency(up=False)
    build = build_probe(pings={"one": one.ping, "two": two.ping})
    async with (
        AsyncExitStack() as outlives,
        run.started(settings_for(ServiceSettings, keys), build) as running,
    ):
        assert not await running.health.check()
        channel = await outlives.enter_async_context(client(running.address))
        heard: list[int] = []

        async def listen() -> None:
            stub = health_pb2_grpc.HealthStub(channel)
            async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)):
                heard.append(answer.status)  # noqa: PERF401 - read while it grows

        listener = asyncio.ensure_future(listen())
        await until(lambda: heard == [NOT_SERVING])
        assert await check(channel) == NOT_SERVING
        assert await check(channel, "") == NOT_SERVING
        two.up = True
        await until(lambda: heard == [NOT_SERVING, SERVING])
        assert await check(channel) == SERVING
        assert await check(channel, "") == SERVING
        one.up = False
        await until(lambda: heard == [NOT_SERVING, SERVING, NOT_SERVING])
        assert running.health.failures == {"one": "connection refused"}
        one.up = True
        await until(lambda: heard[3:] == [SERVING])
    await listener
    assert heard[4:] == [NOT_SERVING], "watchers hear of the shutdown, and end"


async def test_a_ping_that_hangs_counts_as_failed(keys: MeshKeys) -> None:
    """A dependency that takes the connection and says nothing is not well."""

    async def hang() -> None:
        await asyncio.Event().wait()

    async with run.started(
        settings_for(ServiceSettings, keys), build_probe(pings={"dead": hang})
    ) as running:
        assert not await running.health.check()
        assert running.health.failures == {"dead": "TimeoutError"}


async def test_one_watcher_that_leaves_does_not_deafen_the_others(keys: MeshKeys) -> None:
    """Everyone who watches hears every change, whoever else comes or goes."""
    dependency = Dependency(up=True)
    build = build_probe(pings={"d": dependency.ping})
    async with (
        start_service(settings_for(ServiceSettings, keys), build) as running,
        client(running.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        ask = health_pb2.HealthCheckRequest(service=SERVICE)
        stays, leaves = stub.Watch(ask), stub.Watch(ask)
        stays_on = aiter(stays)
        assert (await anext(stays_on)).status == SERVING
        assert (await anext(aiter(leaves))).status == SERVING
        leaves.cancel()
        await asyncio.sleep(0.05)
        dependency.up = False
        assert (await anext(stays_on)).status == NOT_SERVING
        stays.cancel()


async def test_a_service_that_is_not_mounted(keys: MeshKeys) -> None:
    """Check says NOT_FOUND; Watch says SERVICE_UNKNOWN and goes on, as the protocol wants."""
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address) as channel,
    ):
        error = await refusal(check(channel, "none"))
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="none"))
        assert (await anext(aiter(watch))).status == UNKNOWN
        watch.cancel()
    assert type(error) is errors.NotFoundError


async def test_a_drain_refuses_new_calls_and_lets_those_in_flight_end(keys: MeshKeys) -> None:
    """NOT_SERVING first; what runs gets its answer; then clients and stores close."""
    entered, go = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def infer(_: Any, __: Any) -> Any:
        entered.set()
        await go.wait()
        order.append("answered")
        return inference_pb2.InferResponse()

    build = build_probe(infer, on_close=lambda: order.append("closed"))
    stop = asyncio.Event()
    place: asyncio.Future[run.Running] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with start_service(settings_for(ServiceSettings, keys, drain_s=30), build) as it:
            place.set_result(it)
            await stop.wait()

    service = asyncio.ensure_future(serve())
    running = await place
    async with client(running.address, keys.token("service:router")) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = aiter(stub.Watch(health_pb2.HealthCheckRequest(service="")))
        assert (await anext(watch)).status == SERVING
        call = asyncio.ensure_future(_read(Stub(channel).Infer(request())))
        await entered.wait()
        stop.set()
        assert (await anext(watch)).status == NOT_SERVING
        async with client(running.address, keys.token("service:router")) as late:
            error = await refusal(Stub(late).Infer(request()))
        assert type(error) is errors.UnavailableError
        assert order == []
        go.set()
        assert await call == inference_pb2.InferResponse()
    await service
    assert order == ["answered", "closed"]


async def test_a_drain_ends_calls_that_outlast_their_grace(keys: MeshKeys) -> None:
    """Nobody's hanging call keeps a service from going down; its cleanup still runs."""
    entered, ended = asyncio.Event(), asyncio.Event()

    async def stream(_: Any, __: Any) -> AsyncIterator[Any]:
        try:
            yield inference_pb2.InferStreamResponse()
            entered.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def read(channel: grpc.aio.Channel) -> None:
        async for _ in Stub(channel).InferStream(stream_request()):
            pass

    async with AsyncExitStack() as stack:
        service = start_service(
            settings_for(ServiceSettings, keys, drain_s=0.1), build_probe(None, stream)
        )
        running = await service.__aenter__()
        channel = await stack.enter_async_context(
            client(running.address, keys.token("service:router"))
        )
        reading = asyncio.ensure_future(refusal(read(channel)))
        await entered.wait()
        await service.__aexit__(None, None, None)
        error = await reading
    assert type(error) in (errors.UnavailableError, errors.CancelledError)
    assert ended.is_set()


async def _read(call: Any) -> Any:
    return await call


async def test_background_work_that_fails_is_reported(keys: MeshKeys) -> None:
    """A service without its background work is not what it says: `run` stops it."""

    async def work() -> None:
        raise OSError("disk gone")

    async with run.started(
        settings_for(ServiceSettings, keys), build_probe(background=[work])
    ) as running:
        with pytest.raises(OSError, match="disk gone"):
            await running.failed


async def test_background_work_that_ends_by_itself_is_reported(keys: MeshKeys) -> None:
    """Background work has no end; one that comes to it is a fault."""

    async def work() -> None:
        return

    async with run.started(
        settings_for(ServiceSettings, keys), build_probe(background=[work])
    ) as running:
        with pytest.raises(RuntimeError, match="ended by itself"):
            await running.failed


async def test_background_work_goes_on_while_calls_drain(keys: MeshKeys) -> None:
    """Coalescers and flushers serve the calls in flight, so they are cancelled after them."""
    queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
    entered = asyncio.Event()

    async def work() -> None:
        while True:
            (await queue.get()).set_result(None)

    async def infer(_: Any, __: Any) -> Any:
        entered.set()
        await asyncio.sleep(0.2)  # the drain begins meanwhile
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await queue.put(done)
        await done
        return inference_pb2.InferResponse()

    settings = settings_for(ServiceSettings, keys, drain_s=30)
    async with AsyncExitStack() as outlives:
        async with start_service(settings, build_probe(infer, background=[work])) as running:
            channel = await outlives.enter_async_context(
                client(running.address, keys.token("service:router"))
            )
            call = asyncio.ensure_future(_read(Stub(channel).Infer(request())))
            await entered.wait()
        assert await call == inference_pb2.InferResponse()


async def test_a_port_that_is_taken_is_a_failure_to_start(keys: MeshKeys) -> None:
    """Two services on one port is a mistake, and what was built is closed."""
    closed: list[bool] = []
    settings = settings_for(ServiceSettings, keys, listen=f"127.0.0.1:{free_port()}")
    async with start_service(settings, build_probe()):
        with pytest.raises(RuntimeError, match="address"):
            async with start_service(settings, build_probe(on_close=lambda: closed.append(True))):
                pass
    assert closed == [True]


async def test_a_build_that_fails_closes_what_it_had_made(keys: MeshKeys) -> None:
    """Who creates closes, also half-way."""
    closed: list[bool] = []

    async def build(_: ServiceSettings, stack: Any) -> run.Service:
        stack.callback(lambda: closed.append(True))
        raise ValueError("catalog is broken")

    with pytest.raises(ValueError, match="catalog"):
        async with run.started(settings_for(ServiceSettings, keys), build):
            pass
    assert closed == [True]


async def test_trusted_keys_that_cannot_be_read_stop_the_start(keys: MeshKeys) -> None:
    """Nobody runs without knowing whom to trust."""
    keys.trusted_keys.unlink()
    with pytest.raises(ValueError, match="trusted"):
        async with run.started(settings_for(ServiceSettings, keys), build_probe()):
            pass
