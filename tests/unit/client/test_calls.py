"""The clients against a real gRPC server with a router that answers what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.chassis import errors as mesh
from tests.support import free_port
from tests.unit.client.conftest import Either
from tests.unit.client.fake_router import FakeRouter, chunk, decision, final
from twinpath.client import AsyncClient, Request, RetryPolicy, StreamCutError, errors

Connect = Callable[..., Either]
AWAY = mesh.UnavailableError("ALL_CANDIDATES_FAILED", "nobody answered", retry_after=0.0)
BUSY = mesh.ResourceExhaustedError("OVERLOADED", "too much", retry_after=0.001)


async def test_plain_values_go_in_and_come_out(connect: Connect, router: FakeRouter) -> None:
    """Entities and fields are plain values; outputs, path, cost and ids are plain values."""
    found = await connect().infer(
        "diabetes_progression",
        entity={"patient_id": 17},
        fields={"bmi_now": 27.5},
        purpose="care",
        data_class="internal",
        priority="interactive",
        only_path="remote",
        residency="eu",
        consents=["vendor_processing"],
    )
    assert found["progression"] == 152.5
    assert found.outputs["progression"].tolist() == [[152.5]]
    assert list(found) == ["progression"]
    assert (found.decision_id, found.path, found.answered_by.model) == (
        "d1",
        "remote",
        "diabetes_large",
    )
    assert (found.cost.amount, found.cost.basis) == (0.002, "reported")
    assert found.latency_s == 0.0042
    sent = router.requests[0]
    assert sent.entity["patient_id"].int64_value == 17
    assert sent.fields["bmi_now"].double_value == 27.5
    assert (sent.priority, sent.only_path, sent.data_class) == (1, 2, 2)
    assert list(sent.consents) == ["vendor_processing"]


async def test_every_call_has_a_deadline(connect: Connect, router: FakeRouter) -> None:
    """Without a word ten seconds, else what the call or the client says."""
    await connect().infer("t")
    await connect(timeout_s=3.0).infer("t")
    await connect().infer("t", timeout_s=1.0)
    # gRPC rounds up what it sends; the bounds tell ten, three and one seconds apart.
    assert 3.5 < router.time_left[0] < 10.5
    assert 1.5 < router.time_left[1] < 3.5
    assert 0.0 < router.time_left[2] < 1.5


async def test_the_time_is_up(connect: Connect, router: FakeRouter) -> None:
    """A call past its deadline is DeadlineExceededError, is not repeated, and ends in the mesh."""
    router.hang = True
    with pytest.raises(errors.DeadlineExceededError) as caught:
        await connect().infer("t", timeout_s=0.2, idempotency_key="k")
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(router.cancelled.wait(), 10)
    assert len(router.requests) == 1


async def test_errors_carry_what_the_mesh_said(connect: Connect, router: FakeRouter) -> None:
    """Code, reason, metadata, violations and the time to come back arrive in the exception."""
    router.script = [
        mesh.InvalidArgumentError(
            "INVALID_REQUEST",
            "2 fields are wrong",
            metadata={"task": "t"},
            violations=[("entity['patient_id']", "is missing"), ("fields['x']", "is unknown")],
            retry_after=1.5,
        )
    ]
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await connect().infer("t")
    error = caught.value
    assert (error.reason, error.metadata, error.retry_after) == (
        "INVALID_REQUEST",
        {"task": "t"},
        1.5,
    )
    assert error.violations[1] == ("fields['x']", "is unknown")
    assert "entity['patient_id']: is missing" in str(error)


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (mesh.UnauthenticatedError, errors.UnauthenticatedError),
        (mesh.PermissionDeniedError, errors.PermissionDeniedError),
        (mesh.NotFoundError, errors.NotFoundError),
        (mesh.FailedPreconditionError, errors.FailedPreconditionError),
        (mesh.DataLossError, errors.DataLossError),
        (mesh.InternalError, errors.InternalError),
        (mesh.UnimplementedError, errors.UnimplementedError),
    ],
)
async def test_each_code_has_its_class_and_is_final(
    connect: Connect, router: FakeRouter, raised: type, caught: type
) -> None:
    """What a repetition can't change is raised at once, also with an idempotency key."""
    router.script = [raised("SOME_REASON", "no")]
    with pytest.raises(caught, match="SOME_REASON: no"):
        await connect().infer("t", idempotency_key="k")
    assert len(router.requests) == 1


async def test_without_a_key_only_what_was_not_begun_is_repeated(
    connect: Connect, router: FakeRouter
) -> None:
    """OVERLOADED is asked again; a failure after models were asked is not."""
    router.script = [BUSY, decision()]
    assert (await connect().infer("t")).decision_id == "d1"
    assert len(router.requests) == 2
    router.script = [AWAY, decision()]
    with pytest.raises(errors.UnavailableError):
        await connect().infer("t")
    assert len(router.requests) == 3


async def test_with_a_key_a_failure_is_repeated_with_the_same_key(
    connect: Connect, router: FakeRouter
) -> None:
    """Each repetition carries the caller's key, so that one effect stays one."""
    router.script = [AWAY, mesh.AbortedError("IDEMPOTENCY_IN_PROGRESS", "wait"), decision()]
    await connect().infer("t", idempotency_key="order-17")
    assert [r.idempotency_key for r in router.requests] == ["order-17"] * 3


async def test_auto_key_gives_each_request_one_key(connect: Connect, router: FakeRouter) -> None:
    """With auto_key repetitions share a key, and requests don't."""
    client = connect(auto_key=True)
    router.script = [AWAY, decision()]
    await client.infer("t")
    await client.infer("t")
    first, again, second = [r.idempotency_key for r in router.requests]
    assert first == again
    assert first
    assert second
    assert second != first


async def test_repetitions_are_bounded(connect: Connect, router: FakeRouter) -> None:
    """After the last attempt the error is raised."""
    router.script = [AWAY]
    with pytest.raises(errors.UnavailableError):
        await connect(retries=RetryPolicy(attempts=4, base_s=0)).infer("t", idempotency_key="k")
    assert len(router.requests) == 4


async def test_a_wait_beyond_the_deadline_is_not_begun(
    connect: Connect, router: FakeRouter
) -> None:
    """RetryInfo is respected: where it exceeds the deadline, the error comes at once."""
    router.script = [mesh.ResourceExhaustedError("OVERLOADED", "later", retry_after=3600.0)]
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        await connect().infer("t")
    assert caught.value.retry_after == 3600.0
    assert len(router.requests) == 1


async def test_nobody_listens(connect: Connect) -> None:
    """A mesh that can't be reached is UnavailableError, said by the transport."""
    with pytest.raises(errors.UnavailableError) as caught:
        await connect(f"127.0.0.1:{free_port()}").infer("t", timeout_s=5.0)
    assert not caught.value.described
    assert caught.value.reason == "UNAVAILABLE"


async def test_token_from_text_file_and_function(
    connect: Connect, router: FakeRouter, tmp_path: Path
) -> None:
    """A token is a text, a file that may change between calls, or what a function gives."""
    await connect(token="text").infer("t")
    file = tmp_path / "token"
    file.write_text("one\n")
    client = connect(token=file)
    await client.infer("t")
    file.write_text("two\n")
    await client.infer("t")
    await connect(token=lambda: "made").infer("t")
    await connect().infer("t")
    assert [m.get("authorization") for m in router.metadata] == [
        "Bearer text",
        "Bearer one",
        "Bearer two",
        "Bearer made",
        None,
    ]


async def test_token_from_a_coroutine(address: str, router: FakeRouter) -> None:
    """The asynchronous client awaits its token's function."""

    async def token() -> str:
        return "awaited"

    async with AsyncClient(address, token=token) as client:
        await client.infer("t")
    assert router.metadata[0]["authorization"] == "Bearer awaited"


async def test_trace_context_as_an_argument(connect: Connect, router: FakeRouter) -> None:
    """A traceparent that is given goes along."""
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    await connect().infer("t", traceparent=parent, tracestate="a=b")
    assert router.metadata[0]["traceparent"] == parent
    assert router.metadata[0]["tracestate"] == "a=b"


async def test_trace_context_from_opentelemetry(connect: Connect, router: FakeRouter) -> None:
    """Without one, OpenTelemetry's current context goes along."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("caller").start_as_current_span("root") as span:
        await connect().infer("t")
        trace_id = f"{span.get_span_context().trace_id:032x}"
    assert trace.get_current_span() is not span
    assert trace_id in router.metadata[0]["traceparent"]


async def test_items_of_a_batch_fail_alone(connect: Connect, router: FakeRouter) -> None:
    """A batch gives one result an item, in order: a decision or that item's own error."""
    router.script = [decision("a"), mesh.NotFoundError("TASK_UNKNOWN", "no task"), decision("c")]
    items = {name: Request("t", entity={"patient_id": 1}) for name in ("x", "y", "z")}
    first, second, third = await connect().batch_infer(items)
    assert (first.id, first.unwrap().decision_id, first.error) == ("x", "a", None)
    assert third.unwrap().decision_id == "c"
    assert second.decision is None
    with pytest.raises(errors.NotFoundError, match="TASK_UNKNOWN"):
        second.unwrap()


async def test_a_batch_may_be_a_list(connect: Connect, router: FakeRouter) -> None:
    """The items of a list are named by their place."""
    found = await connect(auto_key=True).batch_infer([Request("t"), Request("t")])
    assert [item.id for item in found] == ["0", "1"]
    keys = {item.request.idempotency_key for item in router.requests[0].items}
    assert len(keys) == 2


async def test_explain_tells_who_would_be_asked(connect: Connect) -> None:
    """The plan names the admitted in order, and each refusal's rules."""
    plan = await connect().explain("t")
    assert [candidate.path for candidate in plan.admitted] == ["local"]
    assert plan.refused == {"large": ("restricted_stays",)}


async def test_a_stream_ends_with_its_decision(connect: Connect) -> None:
    """Chunks come one by one; the decision is there after the last."""
    client = connect()
    stream = client.client.infer_stream("note_summary")
    with pytest.raises(RuntimeError, match="before the stream's end"):
        _ = stream.decision
    texts: list[str] = []
    await client.read(stream, texts)
    assert texts == ["a ", "note"]
    assert stream.decision.decision_id == "d1"


@pytest.mark.parametrize(
    "ending", [[], [mesh.UnavailableError("VENDOR_UNAVAILABLE", "reset")]], ids=["bare", "error"]
)
async def test_a_cut_stream_is_an_error(
    connect: Connect, router: FakeRouter, ending: list[Any]
) -> None:
    """A stream without its final message raises, with what was received, and is not repeated."""
    router.stream = [chunk("a "), chunk("no"), *ending]
    client = connect()
    stream = client.client.infer_stream("note_summary", idempotency_key="k")
    texts: list[str] = []
    with pytest.raises(StreamCutError) as caught:
        await client.read(stream, texts)
    assert [part.text for part in caught.value.received] == ["a ", "no"]
    assert (caught.value.cause is not None) == bool(ending)
    assert len(router.requests) == 1
    with pytest.raises(RuntimeError):
        _ = stream.decision


async def test_an_empty_stream_is_an_error(connect: Connect, router: FakeRouter) -> None:
    """A stream that ends at once was cut, too."""
    router.stream = []
    client = connect()
    with pytest.raises(StreamCutError) as caught:
        await client.read(client.client.infer_stream("note_summary"), [])
    assert caught.value.received == ()


async def test_a_stream_refused_before_its_first_chunk_is_repeated(
    connect: Connect, router: FakeRouter
) -> None:
    """Before the first chunk the rules of any call hold."""
    router.stream = [BUSY, chunk("a"), final()]
    client = connect()
    texts: list[str] = []
    await client.read(client.client.infer_stream("note_summary"), texts)
    assert texts == ["a"]
    assert len(router.requests) == 2


async def test_a_stream_past_its_deadline_is_cut(connect: Connect, router: FakeRouter) -> None:
    """A stream that stalls ends with the deadline as its cause."""
    router.stream = [chunk("a"), "hang"]
    client = connect()
    with pytest.raises(StreamCutError) as caught:
        await client.read(client.client.infer_stream("note_summary", timeout_s=0.5), [])
    assert isinstance(caught.value.cause, errors.DeadlineExceededError)
    await asyncio.wait_for(router.cancelled.wait(), 10)


async def test_leaving_a_stream_cancels_it(address: str, router: FakeRouter) -> None:
    """Whoever stops reading stops the model."""
    router.stream = [chunk("a"), "hang"]
    async with AsyncClient(address) as client:
        async with client.infer_stream("note_summary") as stream:
            assert (await anext(aiter(stream))).text == "a"
        await asyncio.wait_for(router.cancelled.wait(), 10)


async def test_cancelling_a_call_cancels_it_in_the_mesh(address: str, router: FakeRouter) -> None:
    """A task that is cancelled takes its call with it."""
    router.hang = True
    async with AsyncClient(address) as client:
        task = asyncio.create_task(client.infer("t"))
        await asyncio.wait_for(router.begun.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(router.cancelled.wait(), 10)
