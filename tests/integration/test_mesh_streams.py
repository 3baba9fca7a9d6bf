"""Text in chunks through the whole mesh, on both paths, and readers that misbehave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.chassis.errors import from_rpc_error
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


async def test_a_reader_that_disappears_leaves_nothing_running(mesh: MeshUnderTest) -> None:
    """After a reader is gone in mid-stream the next one is served, and nothing is in flight."""
    async with mesh.router() as router:
        for _ in range(5):
            call = router.InferStream(ask(), timeout=20)
            async for _message in call:
                call.cancel()
                break
        last = None
        async for message in router.InferStream(ask(), timeout=20):
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
    """Twenty readers that stop reading after a chunk leave router and local within 32 MiB."""
    pids = [mesh.launcher.processes[name].pid for name in ("router", "local")]
    async with mesh.router() as router:
        async for _ in router.InferStream(ask(NOTE * 20), timeout=20):
            pass
        before = [memory_kib(pid) for pid in pids]
        calls = [router.InferStream(ask(NOTE * 500), timeout=30) for _ in range(20)]
        for call in calls:
            await call.read()
        await asyncio.sleep(2)
        after = [memory_kib(pid) for pid in pids]
        for call in calls:
            call.cancel()
    assert all(b - a < 32 * 1024 for a, b in zip(before, after, strict=True))
