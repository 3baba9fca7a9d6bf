"""Text in chunks through the whole mesh, on both paths, and readers that misbehave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from services.chassis.errors import ServiceError, from_rpc_error
from tests.integration.conftest import LOCAL, REMOTE, MeshUnderTest
from twinpath.common.v1 import value_pb2
from twinpath.inference import tensors
from twinpath.router.v1 import router_pb2

pytestmark = pytest.mark.integration

NOTE = (
    "The patient came in on Monday. He reported intermittent dyspnoea and orthopnoea since the "
    "myocardial infarction. It was a nice day. Furosemide was increased."
)


def ask(note: str = NOTE, **more: Any) -> router_pb2.InferStreamRequest:
    """A request for a summary."""
    request = router_pb2.InferRequest(
        task="note_summary",
        entity={"note_id": value_pb2.Value(string_value="n1")},
        fields={"note": value_pb2.Value(string_value=note)},
        **more,
    )
    return router_pb2.InferStreamRequest(request=request)


def text(outputs: Any) -> bytes:
    """The text of some output tensors."""
    return b"".join(e for t in outputs for e in tensors.decode_bytes(t.raw))


@pytest.mark.parametrize("path", [LOCAL, REMOTE])
async def test_text_arrives_in_chunks_and_the_end_holds_the_whole(
    mesh: MeshUnderTest, path: int
) -> None:
    """Several chunks come before the final message, which joins them and names its record."""
    chunks, final = [], None
    async with mesh.router() as router:
        async for message in router.InferStream(ask(only_path=path), timeout=20):
            if message.HasField("chunk"):
                assert final is None
                chunks.append(text(message.chunk.outputs))
            else:
                final = message.final
    assert final is not None
    assert len(chunks) > 3
    assert b"".join(chunks) == text(final.outputs)
    assert final.answered_by.path == path
    assert final.leaf_index > 0
    assert final.attempts[0].first_chunk_us > 0


async def test_both_paths_get_the_same_text(mesh: MeshUnderTest) -> None:
    """The digest of the model input is the same on either path."""
    digests = set()
    async with mesh.router() as router:
        for path in (LOCAL, REMOTE):
            async for message in router.InferStream(ask(only_path=path), timeout=20):
                if message.HasField("final"):
                    digests.add(message.final.input_digest)
    assert len(digests) == 1


async def test_an_empty_note_is_refused_by_name(mesh: MeshUnderTest) -> None:
    """An empty prompt is INVALID_ARGUMENT and names its field."""
    async with mesh.router() as router:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in router.InferStream(ask(""), timeout=20):
                pass
    error = from_rpc_error(caught.value)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations[0][0] == "fields[note]"


async def metric(mesh: MeshUnderTest, name: str) -> float:
    """A metric of the router without labels, as of now."""
    url = f"http://{mesh.launcher.wiring.metrics['router']}/metrics"
    async with aiohttp.ClientSession(trust_env=False) as http, http.get(url) as page:
        lines = (await page.text()).splitlines()
    (value,) = (line.split()[1] for line in lines if line.split()[0] == name)
    return float(value)


async def idle(mesh: MeshUnderTest) -> None:
    """Return once no decision is in flight in the router; a test's limit ends the wait."""
    while await metric(mesh, "twinpath_limiter_in_flight"):  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("path", [LOCAL, REMOTE])
async def test_a_reader_that_disappears_leaves_nothing_running(
    mesh: MeshUnderTest, path: int
) -> None:
    """After readers are gone in mid-stream nothing is in flight, and the next one is served."""
    async with mesh.router() as router:
        for _ in range(5):
            call = router.InferStream(ask(only_path=path), timeout=60)
            async for _message in call:
                call.cancel()
                break
        await idle(mesh)
        last = None
        async for message in router.InferStream(ask(only_path=path), timeout=20):
            last = message
    assert last is not None
    assert last.HasField("final")


def memory_kib(pid: int) -> int:
    """The resident memory of a process, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


async def test_slow_readers_do_not_raise_the_meshs_memory(mesh: MeshUnderTest) -> None:
    """Twenty readers stop after a chunk of answers of tens of thousands of chunks each.

    Read ahead, those would be some hundred MiB in router and remote. Each stays within 64: what
    HTTP/2 and the sockets hold, up to two MiB a stream however long it is.
    """
    await mesh.faults({"fault": "long;times=2000"})
    shared = "edge" in mesh.launcher.processes
    names, allowed_mib = (("edge",), 2 * 64) if shared else (("router", "remote"), 64)
    pids = [mesh.launcher.processes[name].pid for name in names]
    async with mesh.router() as router:
        warm = router.InferStream(ask(only_path=REMOTE), timeout=60)
        for _ in range(100):
            await warm.read()
        before = [memory_kib(pid) for pid in pids]
        calls = [router.InferStream(ask(only_path=REMOTE), timeout=60) for _ in range(20)]
        for call in calls:
            await call.read()
        await asyncio.sleep(3)
        after = [memory_kib(pid) for pid in pids]
        # None has come to its end, or been given up: they wait for their readers.
        assert await metric(mesh, "twinpath_limiter_in_flight") == len(calls) + 1
        for call in (warm, *calls):
            call.cancel()
    await idle(mesh)
    grown = [(b - a) / 1024 for a, b in zip(before, after, strict=True)]
    assert max(grown) < allowed_mib, grown


async def refused(
    mesh: MeshUnderTest, request: router_pb2.InferStreamRequest, timeout_s: float = 20
) -> tuple[ServiceError, int]:
    """The error that ends a stream, and how many chunks came before it."""
    chunks = 0
    async with mesh.router() as router:
        try:
            async for message in router.InferStream(request, timeout=timeout_s):
                chunks += message.HasField("chunk")
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error), chunks
    raise AssertionError("the stream came to a good end")


async def test_a_prompt_of_a_mebibyte_is_refused_by_name(mesh: MeshUnderTest) -> None:
    """What is longer than the task allows never gets to a model."""
    error, _ = await refused(mesh, ask("word " * 210_000))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "fields[note]" in error.violations[0][0]


async def test_a_prompt_that_is_no_utf8_is_refused(mesh: MeshUnderTest) -> None:
    """A message whose text is no UTF-8 is no message of the contract."""
    data = ask("MARK").SerializeToString().replace(b"MARK", b"\xff\xfe\xc0k")
    async with mesh.router_channel() as channel:
        call = channel.unary_stream("/twinpath.router.v1.Router/InferStream")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call(data, timeout=20):
                pass
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")


async def test_a_stream_past_its_deadline_is_cut_and_says_why(mesh: MeshUnderTest) -> None:
    """The reader's chunks are followed by an error that counts them; nothing stays in flight."""
    await mesh.faults({"fault": "stall;delay_ms=8000"})
    error, chunks = await refused(mesh, ask(only_path=REMOTE), timeout_s=1.5)
    assert chunks > 0
    if error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:  # the caller's own clock was not first
        assert error.reason == "STREAM_CUT"
        assert int(error.metadata["chunks"]) >= chunks
        assert "time" in error.message
    await idle(mesh)
