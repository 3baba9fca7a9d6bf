"""The local path while Triton is away, restarts or hangs: right status, no stuck request."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from services.cli.embedded.triton import Triton, TritonOptions
from services.local.compose import build
from services.local.faults import TritonError
from services.local.settings import LocalSettings
from services.local.triton import TritonServer
from tests import triton_models
from tests.local_path import Door, Stub, ask, failure, features, item, local
from tests.support import (
    MeshKeys,
    client,
    free_port,
    refusal,
    settings_for,
    start_service,
)
from twinpath.inference.v1 import inference_pb2

pytestmark = pytest.mark.integration


def echo_server(folder: Path, port: int, http_port: int | None = None) -> Triton:
    """A Triton on known ports."""
    repository = triton_models.repository(folder / "models", triton_models.echo)
    return Triton(
        TritonOptions(
            repository,
            folder / "run",
            triton_models.TRITON_ENV,
            grpc_port=port,
            http_port=http_port,
        )
    )


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Wait for a condition that must come; the limit only ends a broken test."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - there is no event of another process
            await asyncio.sleep(0.05)


async def answers(stub: Stub) -> bool:
    """Whether the echo answers."""
    [result] = await ask(stub, item("echo", features([1]), time_left_s=2))
    return result.status.code == 0


async def go_on(triton: Triton, stub: Stub) -> None:
    """Let a stopped Triton go on, until it answers.

    On a busy machine 2.51 may end itself then: its Python backend finds a lock held for too long
    (boost::interprocess::lock_exception). It is started again, as by whatever keeps it running.
    """
    triton.signal(signal.SIGCONT)

    async def back() -> bool:
        if not triton.running:
            await triton.start()
        return await answers(stub)

    await until(back, 60)


async def test_triton_may_come_later_go_and_come_back(
    tmp_path: Path, keys: MeshKeys, door: Door
) -> None:
    """Without Triton: NOT_SERVING and UNAVAILABLE; both end by themselves, each time."""
    port, http_port = free_port(), free_port()
    triton = echo_server(tmp_path, port, http_port=http_port)
    settings = settings_for(
        LocalSettings, keys, triton_url=triton.url, refresh_s=0.1, **door(triton)
    )
    token = keys.token("service:router")
    async with (
        start_service(settings, build) as service,
        client(service.address, token) as channel,
    ):
        stub = Stub(channel)

        async def away() -> None:
            [result] = await ask(stub, item("echo", features([1])))
            error = failure(result)
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.reason == "TRITON_UNAVAILABLE"
            assert not await service.health.check()

        await away()
        error = await refusal(stub.Describe(inference_pb2.DescribeRequest()))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "TRITON_UNAVAILABLE")
        async with triton:
            await until(lambda: answers(stub))
            assert await service.health.check()
            triton.signal(signal.SIGKILL)
            await until(lambda: _not(answers(stub)))
            await away()
            described = await stub.Describe(inference_pb2.DescribeRequest(model="echo"))
            assert described.models[0].state == inference_pb2.MODEL_STATE_UNAVAILABLE
            assert described.models[0].state_reason == "Triton does not answer"
        async with echo_server(tmp_path, port, http_port=http_port):
            await until(lambda: answers(stub))
            assert await service.health.check()


async def test_a_hanging_triton_holds_nobody_beyond_the_deadline(
    tmp_path: Path, keys: MeshKeys, door: Door
) -> None:
    """Requests under way end at their deadlines; later ones are refused at once; it recovers."""
    server = echo_server(tmp_path, free_port())
    settings = settings_for(
        LocalSettings, keys, triton_url=server.url, refresh_s=0.1, **door(server)
    )
    token = keys.token("service:router")
    async with (
        server as triton,
        start_service(settings, build) as service,
        client(service.address, token) as channel,
    ):
        stub = Stub(channel)
        await until(lambda: answers(stub))
        triton.signal(signal.SIGSTOP)
        many = [item("echo", features([n]), name=f"{n}", time_left_s=0.3) for n in range(20)]
        results = await ask(stub, *many)
        found = {(failure(r).code, failure(r).reason) for r in results}
        assert found <= {
            (grpc.StatusCode.DEADLINE_EXCEEDED, "TRITON_TIMEOUT"),
            (grpc.StatusCode.DEADLINE_EXCEEDED, "MODEL_QUEUE_TIMEOUT"),  # at the model's gate
            (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),  # before it got there
            (grpc.StatusCode.UNAVAILABLE, "TRITON_UNAVAILABLE"),
        }

        async def refused_at_once() -> bool:
            [result] = await ask(stub, item("echo", features([1]), time_left_s=5))
            return failure(result).reason == "TRITON_UNAVAILABLE"

        await until(refused_at_once)
        assert not await service.health.check()
        await go_on(triton, stub)
        assert await service.health.check()


async def test_who_has_time_hears_of_a_hanging_triton_before_it_is_up(
    tmp_path: Path, keys: MeshKeys, door: Door
) -> None:
    """A request with a minute left is told UNAVAILABLE, so that its caller can go elsewhere."""
    server = echo_server(tmp_path, free_port())
    async with server as triton, local(keys, server.url, **door(server)) as stub:
        await until(lambda: answers(stub))
        triton.signal(signal.SIGSTOP)
        [result] = await ask(stub, item("echo", features([1]), time_left_s=60), timeout=60)
        error = failure(result)
        assert error.reason == "TRITON_UNAVAILABLE"
        await go_on(triton, stub)


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_of_two_replicas_goes_under_load(
    tmp_path: Path, keys: MeshKeys, door: Door, fate: signal.Signals
) -> None:
    """Killed or hanging: no request fails that had time to go to the other replica."""
    one = echo_server(tmp_path / "one", free_port())
    two = echo_server(tmp_path / "two", free_port())
    async with one, two:
        both = zip(door(one).items(), door(two).values(), strict=True)
        doors = {name: f"{first},{second}" for (name, first), second in both}
        urls = f"{one.url},{two.url}"
        settings = settings_for(LocalSettings, keys, triton_url=urls, **doors)
        token = keys.token("service:router")
        async with (
            start_service(settings, build) as service,
            client(service.address, token) as channel,
        ):
            stub = Stub(channel)
            await until(lambda: answers(stub))
            codes: list[int] = []
            stop = asyncio.Event()

            async def load() -> None:
                while not stop.is_set():
                    [result] = await ask(
                        stub, item("echo", features([1]), time_left_s=30), timeout=40
                    )
                    codes.append(result.status.code)

            # Many more than the least that the budget for second tries allows, and each a request
            # of its own: the model does not batch.
            callers = [asyncio.create_task(load()) for _ in range(96)]
            await until(lambda: _true(len(codes) > 200))
            one.signal(fate)
            before = len(codes)
            await until(lambda: _true(len(codes) > before + 400))
            stop.set()
            await asyncio.gather(*callers)
            assert set(codes) == {0}
            assert await service.health.check()


async def test_a_model_that_does_not_load_does_not_take_the_others_along(
    tmp_path: Path, keys: MeshKeys
) -> None:
    """A broken model is refused with a reason; its neighbour answers, and the service is well."""
    models = triton_models.repository(
        tmp_path / "models", triton_models.echo, triton_models.batched
    )
    (models / "batched" / "2" / "model.py").write_text("raise RuntimeError('tilt')")
    server = Triton(
        TritonOptions(
            models,
            tmp_path / "run",
            triton_models.TRITON_ENV,
            control="explicit",
            load=("echo",),
        )
    )
    async with server:
        settings = settings_for(LocalSettings, keys, triton_url=server.url, refresh_s=0.1)
        token = keys.token("service:router")
        async with (
            start_service(settings, build) as service,
            client(service.address, token) as channel,
        ):
            stub = Stub(channel)
            await until(lambda: answers(stub))
            direct = TritonServer(server.url, 1 << 20)
            with pytest.raises(TritonError):
                await direct.load("batched", 30)
            await direct.close()
            [result] = await ask(stub, item("batched", features([1, 2, 3]), version="2"))
            error = failure(result)
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.reason == "MODEL_UNAVAILABLE"
            assert await service.health.check()


async def _not(work: Awaitable[bool]) -> bool:
    return not await work


async def _true(value: bool) -> bool:
    return value
