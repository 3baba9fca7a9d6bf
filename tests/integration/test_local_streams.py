"""Streams of the local path, over a model with the tensors of Triton's vLLM backend."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.cli.embedded.triton import Triton
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
from tests.support import MeshKeys, refusal
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton with the streaming model."""
    folder = tmp_path_factory.mktemp("triton")
    with triton(folder, triton_models.words, triton_models.echo, triton_models.faulty) as running:
        yield running


@pytest.fixture
async def stub(server: Triton, keys: MeshKeys) -> AsyncIterator[Stub]:
    """The local path over it."""
    async with local(keys, server.url, machine_usd_per_hour=3.6) as found:
        yield found


def prompt(text: str) -> tensor_pb2.ModelInput:
    """The model's input, with all its tensors."""
    return model_input(
        tensors.from_numpy("text_input", np.array([text.encode()], dtype=object)),
        tensors.from_numpy("stream", np.array([True])),
        tensors.from_numpy("sampling_parameters", np.array([b"{}"], dtype=object)),
    )


def stream(stub: Stub, text: str, *, timeout: float = 20, **fields: object):
    """The call."""
    request = inference_pb2.InferStreamRequest(item=item("words", prompt(text), **fields))
    return stub.InferStream(request, timeout=timeout)


async def read(
    call, into: list[inference_pb2.InferStreamResponse] | None = None
) -> list[inference_pb2.InferStreamResponse]:
    """All messages; they stand in `into` also when the stream fails."""
    messages = [] if into is None else into
    async for message in call:
        messages.append(message)
    return messages


def text_of(messages: list[inference_pb2.InferStreamResponse]) -> str:
    """What the chunks say."""
    chunks = [m.chunk for m in messages if m.WhichOneof("message") == "chunk"]
    return "".join(tensors.decode_bytes(c.outputs[0].raw)[0].decode() for c in chunks)


def ends_failed(messages: list[inference_pb2.InferStreamResponse], reason: str) -> None:
    """The last message says what the failed stream took, those before it are chunks."""
    kinds = [m.WhichOneof("message") for m in messages]
    assert kinds == ["chunk"] * (len(kinds) - 1) + ["failed"]
    assert failure(messages[-1].failed).reason == reason
    assert messages[-1].failed.metering.sent
    assert messages[-1].failed.metering.latency_us > 0


async def test_words_come_as_chunks_and_then_the_end(stub: Stub) -> None:
    """Each word is a chunk; the final message has the metering."""
    messages = await read(stream(stub, "one two drei é"))
    assert len(messages) == 5
    assert text_of(messages) == "one two drei é "
    metering = messages[-1].final.metering
    assert metering.first_chunk_us > 0
    assert metering.latency_us >= metering.first_chunk_us
    assert metering.bytes_in > 0
    assert metering.reported_version == "1"
    assert metering.sent


async def test_chunks_come_while_the_model_still_works(stub: Stub) -> None:
    """The first chunk is there before the model can have said the last one."""
    call = stream(stub, "now " + "WAIT " * 200)
    first = await call.read()
    assert text_of([first]) == "now "
    call.cancel()


async def test_a_model_without_chunks_answers_in_one(stub: Stub) -> None:
    """Then the final message."""
    request = inference_pb2.InferStreamRequest(item=item("echo", features([1, 2])))
    messages = await read(stub.InferStream(request, timeout=20))
    assert [m.WhichOneof("message") for m in messages] == ["chunk", "final"]


async def test_a_streaming_model_is_not_asked_for_one_answer(stub: Stub) -> None:
    """Infer says so, and sends nothing."""
    [result] = await ask(stub, item("words", prompt("a b")))
    error = failure(result)
    assert (error.code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "MODEL_STREAMS")
    assert not result.metering.sent


@pytest.mark.parametrize(
    ("text", "said", "reason"),
    [("a b FAIL c", "a b ", "MODEL_FAILED"), ("a WRONG", "a ", "MODEL_OUTPUT_INVALID")],
)
async def test_a_stream_that_fails_is_an_error_after_its_chunks(
    stub: Stub, text: str, said: str, reason: str
) -> None:
    """What was received stays, and is metered; the model's own words stay inside."""
    messages: list[inference_pb2.InferStreamResponse] = []
    error = await refusal(read(stream(stub, text), messages))
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, reason)
    assert "1234" not in error.message
    assert text_of(messages) == said
    ends_failed(messages, reason)


async def test_a_stream_past_its_deadline_is_an_error(stub: Stub) -> None:
    """With what came until then."""
    messages: list[inference_pb2.InferStreamResponse] = []
    error = await refusal(read(stream(stub, "WAIT " * 100, time_left_s=0.4), messages))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.reason == "TRITON_TIMEOUT"
    ends_failed(messages, "TRITON_TIMEOUT")


async def test_a_caller_that_leaves_stops_the_model(server: Triton, stub: Stub) -> None:
    """Cancellation reaches Triton, which tells the model."""
    call = stream(stub, "cancel-me " + "WAIT " * 200)
    await call.read()
    call.cancel()
    log = Path(server.options.models).parent / "cancelled.txt"
    async with asyncio.timeout(20):
        while not (log.exists() and "cancel-me" in log.read_text()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_many_streams_do_not_mix(stub: Stub) -> None:
    """Twenty at once: each gets its own words."""
    texts = [" ".join(f"w{n}.{m}" for m in range(20)) for n in range(20)]
    answers = await asyncio.gather(*(read(stream(stub, text)) for text in texts))
    assert [text_of(messages) for messages in answers] == [f"{text} " for text in texts]


async def test_long_prompts_and_empty_ones_pass(stub: Stub) -> None:
    """One word of a megabyte; no word at all is a stream with only an end."""
    word = "x" * 1_000_000
    assert text_of(await read(stream(stub, word))) == f"{word} "
    messages = await read(stream(stub, ""))
    assert [m.WhichOneof("message") for m in messages] == ["final"]


async def test_a_stream_that_is_cut_is_no_success(tmp_path: Path, keys: MeshKeys) -> None:
    """Triton dies in the middle: UNAVAILABLE, and no final message."""
    async with (
        new_triton(tmp_path, triton_models.words) as server,
        local(keys, server.url) as stub,
    ):
        call = stream(stub, "now " + "WAIT " * 400)
        messages = [await call.read()]
        server.signal(signal.SIGKILL)
        error = await refusal(read(call, messages))
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "TRITON_UNAVAILABLE"
    ends_failed(messages, "TRITON_UNAVAILABLE")


async def test_streams_go_to_the_other_replica_before_their_first_chunk(
    tmp_path: Path, keys: MeshKeys
) -> None:
    """When the one that they were asked of has just been killed: nobody has seen anything yet."""
    one, two = (new_triton(tmp_path / n, triton_models.words) for n in ("one", "two"))
    async with one, two, local(keys, f"{one.url},{two.url}", refresh_s=60) as stub:
        async with asyncio.timeout(60):
            while not await told(stub):  # noqa: ASYNC110 - until both are known to be up
                await asyncio.sleep(0.05)
        one.signal(signal.SIGKILL)
        calls = (read(stream(stub, "two words", timeout=60)) for _ in range(64))
        assert {text_of(messages) for messages in await asyncio.gather(*calls)} == {"two words "}


async def told(stub: Stub) -> bool:
    """Whether a stream comes."""
    try:
        await read(stream(stub, "word"))
    except grpc.RpcError:
        return False
    return True
