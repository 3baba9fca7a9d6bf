"""Streams: chunks are provisional, the end follows the record, and a cut is never a success."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.chassis.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    ServiceError,
    UnavailableError,
    UnimplementedError,
)
from tests.unit.router.ports import World, failure
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2
from twinpath.router.v1 import router_pb2

END = inference_pb2.InferResult()
AWAY = UnavailableError("TRITON_UNAVAILABLE", "away")


def ask(note: str = "One. Two.", **more: Any) -> router_pb2.InferRequest:
    """A request for a summary."""
    request = router_pb2.InferRequest(task="note_summary", **more)
    request.entity["note_id"].string_value = "n1"
    request.fields["note"].string_value = note
    return request


def texts(outputs: Any) -> list[bytes]:
    """The elements of the text output."""
    return [e for t in outputs if t.name == "text_output" for e in tensors.decode_bytes(t.raw)]


async def read(world: World, request: router_pb2.InferRequest | None = None) -> tuple[Any, Any]:
    """Read a whole stream: the chunks' texts, and the final message."""
    await world.board.refresh()
    chunks: list[bytes] = []
    final = None
    async for message in world.streams.decide(request or ask(), world.call()):
        if message.HasField("chunk"):
            assert final is None
            chunks += texts(message.chunk.outputs)
        else:
            final = message.final
    return chunks, final


async def test_chunks_arrive_and_the_final_message_holds_the_whole() -> None:
    """Chunks come as the model gives them; the final message joins them and is recorded."""
    world = World()
    world.local.script = ["Hel", "lo", END]
    chunks, final = await read(world)
    assert chunks == [b"Hel", b"lo"]
    assert texts(final.outputs) == [b"Hello"]
    assert world.audit.kinds() == ["INTENT", "OUTCOME"]
    assert final.attempts[0].first_chunk_us >= 0
    assert world.local.closed == 1


async def test_times_between_chunks_are_measured() -> None:
    """Of three chunks there are two gaps; the first chunk's time is another metric's."""
    world = World()
    world.local.script = ["a", "b", "c", END]
    chunks, final = await read(world)
    labels = {"path": "local", "candidate": final.answered_by.id}

    def gaps() -> float:
        return REGISTRY.get_sample_value("twinpath_chunk_gap_seconds_count", labels) or 0.0

    before = gaps()
    world.local.script = ["a", "b", "c", END]
    again, _ = await read(world)
    assert len(chunks) == len(again) == 3
    assert gaps() == before + 2


async def test_no_chunk_before_the_intent_is_durable() -> None:
    """While the INTENT is not on disk the model is not asked."""
    world = World()
    world.local.script = ["x", END]
    gate = asyncio.Event()
    world.audit.delay = gate.wait
    task = asyncio.create_task(read(world))
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.local.items == []
    gate.set()
    await task


async def test_no_final_message_without_a_record() -> None:
    """If the OUTCOME can't be made durable there is no final message, but an error."""
    world = World()

    async def break_the_log() -> None:
        world.audit.error = UnavailableError("AUDIT_UNREACHABLE", "away")

    world.local.script = ["x", break_the_log, END]
    with pytest.raises(UnavailableError):
        await read(world)


@pytest.mark.parametrize("cut", [AWAY, None])
async def test_a_cut_stream_is_an_error_that_says_how_far_it_came(cut: Exception | None) -> None:
    """A stream that breaks, or just ends without its end, is STREAM_CUT; nobody else is asked."""
    world = World()
    world.local.script = ["ab", "cd", *([cut] if cut else [])]
    with pytest.raises(UnavailableError) as caught:
        await read(world)
    assert caught.value.reason == "STREAM_CUT"
    assert caught.value.metadata["chunks"] == "2"
    assert world.remote.items == []
    assert world.audit.kinds() == ["INTENT", "FAILED"]


def took(nanos: int) -> inference_pb2.InferStreamResponse:
    """What a path says of a stream that failed."""
    failed = inference_pb2.InferResult()
    failed.metering.bytes_out, failed.metering.input_tokens = 52, 7
    failed.metering.cost.CopyFrom(decision_pb2.Cost(currency_code="USD", nanos=nanos))
    return inference_pb2.InferStreamResponse(failed=failed)


async def test_what_a_failed_stream_took_is_in_the_record() -> None:
    """Bytes, tokens and cost, as its path said them before its error; it is still a failure."""
    world = World()
    world.local.script = ["ab", took(90), AWAY]
    with pytest.raises(UnavailableError, match="cut after 1 chunks"):
        await read(world)
    (attempt,) = world.audit.log[-1].record.attempts
    assert (attempt.reason, attempt.bytes_out, attempt.input_tokens) == (AWAY.reason, 52, 7)
    assert attempt.cost.nanos == 90


async def test_what_a_stream_took_whose_path_is_gone_is_estimated() -> None:
    """A path that dies after chunks can't say what it took; a vendor may bill for it."""
    world = World()
    await world.board.refresh()
    world.local.script = [AWAY]
    world.remote.script = ["ab", UnavailableError("REMOTE_UNREACHABLE", "gone")]
    with pytest.raises(UnavailableError):
        await read(world)
    attempt = world.audit.log[-1].record.attempts[-1]
    assert attempt.candidate.path == context_pb2.PATH_REMOTE
    assert attempt.cost.basis == decision_pb2.COST_BASIS_ESTIMATED
    assert attempt.cost.nanos > 0


async def test_a_reader_that_goes_away_leaves_a_record_of_what_was_taken() -> None:
    """The INTENT is closed with the attempt that was cut off; no answer was given."""
    world = World()
    world.local.script = ["a", "b", END]
    await world.board.refresh()
    stream = world.streams.decide(ask(), world.call())
    await anext(stream)
    await stream.aclose()
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.audit.kinds() == ["INTENT", "FAILED"]
    record = world.audit.log[-1].record
    assert record.reason == "CALLER_GONE"
    assert record.attempts[0].cancelled


async def test_a_model_that_only_streams_answers_a_whole_request_too() -> None:
    """Its stream is collected; it is asked only once whether it must be."""
    world = World()
    await world.board.refresh()
    only = UnimplementedError("MODEL_STREAMS", "the model answers in streams only")
    world.local.behave = lambda item: failure(item, only)
    world.local.script = ["Hel", "lo", END]
    for asked in (2, 3):
        reply = await world.pipeline.decide(ask(), world.call())
        assert texts(reply.outputs) == [b"Hello"]
        assert reply.answered_by.path == context_pb2.PATH_LOCAL
        assert len(world.local.items) == asked
    world.local.script = ["Hel", took(90), AWAY]
    world.remote.behave = lambda item: failure(item, AWAY)
    with pytest.raises(UnavailableError):
        await world.pipeline.decide(ask(), world.call())
    attempts = world.audit.log[-1].record.attempts
    assert next(a.cost.nanos for a in attempts if a.candidate.path == context_pb2.PATH_LOCAL) == 90


async def test_before_the_first_chunk_another_candidate_may_take_over() -> None:
    """A candidate that fails before its first chunk is followed by the next one."""
    world = World()
    world.local.script = [AWAY]
    world.remote.script = ["from afar", END]
    chunks, final = await read(world)
    assert chunks == [b"from afar"]
    assert final.fallback
    assert [a.reason for a in final.attempts] == ["TRITON_UNAVAILABLE", ""]


async def test_restricted_text_never_streams_from_a_vendor() -> None:
    """A restricted request does not fall back to a vendor."""
    world = World()
    world.local.script = [AWAY]
    world.remote.script = ["leak", END]
    with pytest.raises(ServiceError):
        await read(world, ask(data_class=context_pb2.DATA_CLASS_RESTRICTED))
    assert world.remote.items == []


async def test_a_refusal_by_content_policy_ends_the_stream_for_good() -> None:
    """When the vendor's policy stops the text, no other candidate is asked."""
    world = World()
    filtered = inference_pb2.InferResult(finish_reason=inference_pb2.FINISH_REASON_CONTENT_FILTER)
    world.local.script = [filtered]
    with pytest.raises(FailedPreconditionError) as caught:
        await read(world)
    assert caught.value.reason == "CONTENT_FILTERED"
    assert world.remote.items == []


async def test_a_reader_that_goes_away_closes_the_models_stream() -> None:
    """When the caller stops reading, the model's stream is closed and the place is given back."""
    world = World()
    world.local.script = ["a", "b", "c", END]
    await world.board.refresh()
    stream = world.streams.decide(ask(), world.call())
    await anext(stream)
    await stream.aclose()
    assert world.local.closed == 1
    assert world.limiter.in_flight == 0
    assert "OUTCOME" not in world.audit.kinds()


async def test_a_repeated_key_gives_the_recorded_text() -> None:
    """Asking again with the same key gives the same text, and no model is asked."""
    world = World()
    world.local.script = ["Hello", END]
    await read(world, ask(idempotency_key="k"))
    chunks, final = await read(world, ask(idempotency_key="k"))
    assert chunks == [b"Hello"]
    assert final.repeated
    assert len(world.local.items) == 1


async def test_a_second_copy_of_a_running_stream_is_told_to_wait() -> None:
    """While a stream with a key runs, another copy of it is ABORTED, and no model is asked."""
    world = World()
    gate = asyncio.Event()
    world.local.script = ["a", gate.wait, END]
    await world.board.refresh()
    first = asyncio.create_task(read(world, ask(idempotency_key="k")))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(world.local.items) == 1
    with pytest.raises(AbortedError):
        await read(world, ask(idempotency_key="k"))
    gate.set()
    await first
    assert len(world.local.items) == 1
    assert world.claims.held == set()


async def test_a_stream_whose_record_came_second_is_no_success() -> None:
    """If another copy's OUTCOME was first, chunks of another answer don't end in a final message."""
    world = World()

    async def no_claim(decision_id: str, ttl_s: float) -> bool:
        return True

    world.claims.take = no_claim  # type: ignore[method-assign]

    async def overtake() -> None:
        world.local.script = ["other", END]
        await read(world, ask(idempotency_key="k"))

    world.local.script = ["mine", overtake, END]
    with pytest.raises(AbortedError) as caught:
        await read(world, ask(idempotency_key="k"))
    assert caught.value.reason == "STREAM_OVERTAKEN"
    assert world.audit.kinds().count("OUTCOME") == 1


@pytest.mark.parametrize(("note", "says"), [("", "is empty"), ("x" * 100_001, "is longer")])
async def test_an_empty_or_huge_prompt_is_refused_by_name(note: str, says: str) -> None:
    """An empty note and one over the task's limit are INVALID_ARGUMENT with the field."""
    with pytest.raises(InvalidArgumentError) as caught:
        await read(World(), ask(note))
    assert caught.value.violations[0][0] == "fields[note]"
    assert says in caught.value.violations[0][1]


async def test_a_task_that_does_not_stream_says_so() -> None:
    """InferStream of a task without chunks is FAILED_PRECONDITION and names Infer."""
    from tests.unit.router.ports import ask as ask_about

    world = World()
    with pytest.raises(FailedPreconditionError) as caught:
        await read(world, ask_about("diabetes_progression"))
    assert caught.value.reason == "NOT_STREAMING"
