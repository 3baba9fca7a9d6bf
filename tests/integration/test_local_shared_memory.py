"""Large tensors through shared memory on the real Triton, and what a crash leaves behind: nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.cli.embedded.triton import Triton
from services.local import metrics, shared
from tests import triton_models
from tests.local_path import (
    Stub,
    ask,
    failure,
    features,
    item,
    local,
    model_input,
    new_triton,
    triton,
)
from tests.support import ROOT, MeshKeys, client, free_port
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2

pytestmark = pytest.mark.integration

MANY = np.arange(384 * 1024, dtype=np.float32).reshape(384, -1)  # 1.5 MiB: two fit a message


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton with an echo, and a model that takes its time."""
    folder = tmp_path_factory.mktemp("triton")
    with triton(folder, triton_models.echo, triton_models.faulty) as running:
        yield running


def large() -> inference_pb2.InferItem:
    """An item of 1.5 MiB."""
    return item("echo", model_input(tensors.from_numpy("features", MANY)))


async def regions(server: Triton) -> list[str]:
    """Our shared memory that a Triton has mapped."""
    async with grpc.aio.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        status = await stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest())
    return [name for name in status.regions if name.startswith(shared.PREFIX)]


def files() -> list[str]:
    """Our files in /dev/shm."""
    return [path.name for path in shared.FOLDER.glob(f"{shared.PREFIX}*")]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what must come."""
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110 - there is no event of another process
            await asyncio.sleep(0.05)


def through_memory() -> float:
    """Bytes that went through shared memory so far."""
    found: float = metrics.SHARED._value.get()
    return found


async def test_a_large_tensor_goes_through_shared_memory(server: Triton, keys: MeshKeys) -> None:
    """The model gets the same bytes; a small one, and one that finds no room, go by wire."""
    room = {"shared_memory_from_bytes": 1024 * 1024, "shared_memory_bytes": 2 * 1024 * 1024}
    async with local(keys, server.url, **room) as stub:
        await until(lambda: _mapped(server))
        (ours,) = await regions(server)
        assert ours in files()
        started = through_memory()
        results = await ask(stub, large(), item("echo", features([1, 2]), name="small"))
        assert [result.status.code for result in results] == [0, 0]
        assert np.array_equal(tensors.to_numpy(results[0].outputs[0]), MANY)
        assert results[0].metering.bytes_out > MANY.nbytes
        assert through_memory() - started == MANY.nbytes
        two = [large(), large()]
        two[1].context.id = "item-2"
        results = await ask(stub, *two)
        for result in results:
            assert np.array_equal(tensors.to_numpy(result.outputs[0]), MANY)
        assert through_memory() - started in (2 * MANY.nbytes, 3 * MANY.nbytes)
    assert ours not in files()  # an orderly end leaves nothing
    assert not await regions(server)


async def _mapped(server: Triton, other_than: str = "") -> bool:
    return bool(set(await regions(server)) - {other_than})


async def _forgotten(server: Triton, name: str) -> bool:
    return name not in await regions(server)


async def test_without_a_threshold_nothing_is_shared(server: Triton, keys: MeshKeys) -> None:
    """And the answer is the same."""
    async with local(keys, server.url, shared_memory_from_bytes=0) as stub:
        [result] = await ask(stub, large())
        assert np.array_equal(tensors.to_numpy(result.outputs[0]), MANY)
        assert not await regions(server)


def process(keys: MeshKeys, server: Triton, folder: Path) -> tuple[ManagedProcess, str]:
    """The local path as a process of its own, and its address."""
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **keys.environment(),
        "PATH": os.environ["PATH"],
        "TWINPATH_LOCAL_LISTEN": address,
        "TWINPATH_TRITON_URL": server.url,
        "TWINPATH_PING_INTERVAL_S": "0.1",
    }
    argv = (sys.executable, "-m", "services.local")
    return ManagedProcess(
        ProcessSpec("local", argv, folder / "local.log", env=environment, cwd=ROOT)
    ), address


async def answers(keys: MeshKeys, address: str, *items: inference_pb2.InferItem) -> bool:
    """Whether the process answers these."""
    async with client(address, keys.token("service:router")) as channel:
        try:
            results = await ask(Stub(channel), *items)
        except grpc.aio.AioRpcError:
            return False
    return all(result.status.code == 0 for result in results)


async def test_a_crash_leaves_nothing_once_the_path_is_back(
    server: Triton, keys: MeshKeys, tmp_path: Path
) -> None:
    """Killed in the middle of a large inference: file and mapping go, and Triton lives."""
    first, address = process(keys, server, tmp_path)
    await first.start()
    try:
        await until(lambda: answers(keys, address, large()))
        await until(lambda: _mapped(server))
        (left,) = await regions(server)
        slow = np.full((512, 1024), 3000, np.float32)  # 2 MiB, and three seconds
        asked = item("faulty", model_input(tensors.from_numpy("features", slow)), name="slow")
        under_way = asyncio.create_task(answers(keys, address, asked))
        await asyncio.sleep(0.5)
        first.signal(signal.SIGKILL)
        assert not await under_way
    finally:
        await first.stop()
    assert left in files()  # it could not clean up
    second, address = process(keys, server, tmp_path)
    await second.start()
    try:
        await until(lambda: answers(keys, address, large()))
        await until(lambda: _mapped(server, left))
        assert left not in files()
        await until(lambda: _forgotten(server, left))  # once the model has done with it
        (ours,) = await regions(server)
        assert await answers(keys, address, item("faulty", features([50]), name="after"))
    finally:
        await second.stop()
    assert ours not in files()
    assert not await regions(server)


async def test_triton_restarts_while_it_reads_our_memory(keys: MeshKeys, tmp_path: Path) -> None:
    """Who was being answered hears of it; the new one maps the memory anew, and reads it right."""
    port = free_port()

    def run(folder: str) -> Triton:
        models = (triton_models.echo, triton_models.faulty)
        return new_triton(tmp_path / folder, *models, grpc_port=port)

    slow = np.full((512, 1024), 30_000, np.float32)  # 2 MiB, and half a minute
    asked = item("faulty", model_input(tensors.from_numpy("features", slow)), name="slow")
    async with local(keys, f"127.0.0.1:{port}", shared_memory_from_bytes=1024 * 1024) as stub:

        async def right() -> bool:
            [result] = await ask(stub, large())
            if result.status.code:
                return False
            assert np.array_equal(tensors.to_numpy(result.outputs[0]), MANY)
            return True

        async def by_memory() -> bool:
            started = through_memory()
            return await right() and through_memory() > started

        async with run("first") as first:
            await until(by_memory)
            started = through_memory()
            under_way = asyncio.create_task(ask(stub, asked))
            await until(lambda: _more_than(started))
            first.signal(signal.SIGKILL)
            [result] = await under_way
            assert failure(result).reason == "TRITON_UNAVAILABLE"
        async with run("second") as second:
            await until(right)  # if need be by wire
            await until(by_memory)
            (ours,) = await regions(second)
    assert ours not in files()


async def _more_than(before: float) -> bool:
    return through_memory() > before


async def test_a_call_that_is_given_up_does_not_lend_its_memory_on(
    server: Triton, keys: MeshKeys
) -> None:
    """What Triton may still read is not overwritten: the next large tensor goes by wire."""
    room = {"shared_memory_from_bytes": 1024 * 1024, "shared_memory_bytes": 3 * 1024 * 1024}
    slow = np.full((512, 1024), 1000, np.float32)  # 2 MiB
    asked = item(
        "faulty", model_input(tensors.from_numpy("features", slow)), name="s", time_left_s=0.2
    )
    async with local(keys, server.url, **room) as stub:
        await until(lambda: _mapped(server))
        [late] = await ask(stub, asked)
        assert failure(late).reason == "TRITON_TIMEOUT"
        started = through_memory()
        again = item("echo", model_input(tensors.from_numpy("features", slow)), name="again")
        [result] = await ask(stub, again)
        assert np.array_equal(tensors.to_numpy(result.outputs[0]), slow)
        assert through_memory() == started
