"""A served call, from the wire: errors, identity, validation, deadlines, sizes, cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from services.chassis import call as calls
from services.chassis import errors
from services.chassis.settings import ServiceSettings
from tests.support import MeshKeys, client, refusal, settings_for, start_service
from tests.unit.chassis.probe import INFER, SERVICE, build_probe, request, stream_request
from tests.unit.chassis.test_errors import CODES
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

Stub = inference_pb2_grpc.InferenceStub


def served(name: str, **labels: str) -> float:
    """Return a metric's value."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
async def test_every_error_arrives_with_code_reason_and_metadata(
    keys: MeshKeys, kind: type[errors.ServiceError]
) -> None:
    """What a handler raises is what the caller's stub sees, unary and streamed."""

    async def infer(_: Any, __: Any) -> Any:
        raise kind("SOME_REASON", "sentence", metadata={"a": "b"}, violations=[("f", "bad")])

    async def stream(_: Any, __: Any) -> AsyncIterator[Any]:
        yield inference_pb2.InferStreamResponse()
        raise kind("SOME_REASON", "sentence", metadata={"a": "b"}, violations=[("f", "bad")])

    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(infer, stream)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        unary = await refusal(Stub(channel).Infer(request()))

        async def read() -> None:
            async for _ in Stub(channel).InferStream(stream_request()):
                pass

        streamed = await refusal(read())
    for error in (unary, streamed):
        assert type(error) is kind
        assert (error.reason, error.message) == ("SOME_REASON", "sentence")
        assert error.metadata == {"a": "b"}
        assert error.violations == [("f", "bad")]


async def test_an_unexpected_exception_is_internal_and_tells_nothing(
    keys: MeshKeys, caplog: pytest.LogCaptureFixture
) -> None:
    """Never UNKNOWN, never the text; the log has it."""

    async def infer(_: Any, __: Any) -> Any:
        raise KeyError("patient 17")

    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(infer)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        error = await refusal(Stub(channel).Infer(request()))
    assert type(error) is errors.InternalError
    assert "17" not in f"{error.message} {error.metadata}"
    assert any(r.exc_info and "patient 17" in str(r.exc_info[1]) for r in caplog.records)


async def test_a_handler_that_answers_nonsense_is_internal(keys: MeshKeys) -> None:
    """A response that can't be serialized is our fault, said clearly."""

    async def infer(_: Any, __: Any) -> Any:
        return None

    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(infer)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        assert type(await refusal(Stub(channel).Infer(request()))) is errors.InternalError


async def test_bytes_that_are_no_message_are_an_invalid_argument(keys: MeshKeys) -> None:
    """A broken message is the caller's fault: not UNKNOWN, and no text of the parser."""
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        error = await refusal(channel.unary_unary(INFER)(b"\xff\xff\xff"))
    assert type(error) is errors.InvalidArgumentError
    assert error.reason == "MESSAGE_MALFORMED"


async def test_a_stranger_learns_nothing_about_a_request(keys: MeshKeys) -> None:
    """Identity comes before validation, also for bytes that are no message."""
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address) as nobody,
        client(running.address, keys.token("ann")) as stranger,
    ):
        missing = await refusal(nobody.unary_unary(INFER)(b"\xff\xff\xff"))
        denied = await refusal(Stub(stranger).Infer(inference_pb2.InferRequest()))
    assert (type(missing), missing.reason) == (errors.UnauthenticatedError, "TOKEN_MISSING")
    assert (type(denied), denied.reason) == (errors.PermissionDeniedError, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("value", ["Bearer ", "Bearer", "Bearer x.y.z", "Basic abc", "x"])
async def test_an_authorization_that_is_no_token_is_refused(keys: MeshKeys, value: str) -> None:
    """Empty, cut, of another scheme: UNAUTHENTICATED."""
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address) as channel,
    ):
        call = Stub(channel).Infer(request(), metadata=(("authorization", value),))
        error = await refusal(call)
    assert (type(error), error.reason) == (errors.UnauthenticatedError, "TOKEN_INVALID")


async def test_violations_arrive_all_at_once(keys: MeshKeys) -> None:
    """BadRequest names each field."""
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        message = inference_pb2.InferRequest(items=[inference_pb2.InferItem()])
        error = await refusal(Stub(channel).Infer(message))
        streamed = inference_pb2.InferStreamRequest()
        other = await refusal(anext(aiter(Stub(channel).InferStream(streamed))))
    assert error.reason == "INVALID_FIELDS"
    assert {field for field, _ in error.violations} == {
        "items[0].context",
        "items[0].model",
        "items[0].input",
    }
    assert [field for field, _ in other.violations] == ["item"]


async def test_a_request_above_the_limit_is_refused_as_too_large(keys: MeshKeys) -> None:
    """The limit is ours, on purpose; gRPC itself refuses, so the reason is the code's name."""
    settings = settings_for(ServiceSettings, keys, max_message_bytes=20_000)
    async with (
        start_service(settings, build_probe()) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        large = request()
        large.items[0].input.tensors[0].raw = b"x" * 30_000
        error = await refusal(Stub(channel).Infer(large))
        assert type(error) is errors.ResourceExhaustedError
        await Stub(channel).Infer(request())


async def test_a_response_above_the_limit_says_so(keys: MeshKeys) -> None:
    """A response that does not fit is an error with a reason, unary and streamed."""

    def big() -> inference_pb2.InferResult:
        result = inference_pb2.InferResult(id="d-1")
        result.outputs.add(raw=b"x" * 30_000)
        return result

    async def infer(_: Any, __: Any) -> Any:
        return inference_pb2.InferResponse(results=[big()])

    async def stream(_: Any, __: Any) -> AsyncIterator[Any]:
        yield inference_pb2.InferStreamResponse(final=big())

    settings = settings_for(ServiceSettings, keys, max_message_bytes=20_000)
    async with (
        start_service(settings, build_probe(infer, stream)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        for call in (
            Stub(channel).Infer(request()),
            anext(aiter(Stub(channel).InferStream(stream_request()))),
        ):
            error = await refusal(call)
            assert type(error) is errors.ResourceExhaustedError
            assert error.reason == "RESPONSE_TOO_LARGE"


async def test_many_violations_still_arrive(keys: MeshKeys) -> None:
    """Details that would not fit into trailers must not replace the error by another one."""
    message = inference_pb2.InferRequest()
    for _ in range(900):
        message.items.add()
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        error = await refusal(Stub(channel).Infer(message))
    assert type(error) is errors.InvalidArgumentError
    assert error.violations[-1][1].endswith("more violations")


async def test_a_handler_knows_who_calls_and_until_when(keys: MeshKeys) -> None:
    """The current call carries identity, method and the caller's own deadline."""
    seen: list[calls.Call] = []

    async def infer(_: Any, __: Any) -> Any:
        call = calls.current()
        assert call is not None
        seen.append(call)
        return inference_pb2.InferResponse()

    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(infer)) as running,
        client(running.address, keys.token("service:router", tenant="t")) as channel,
    ):
        await Stub(channel).Infer(request(), timeout=100)
        await Stub(channel).Infer(request())
    assert seen[0].method == INFER
    assert (seen[0].identity.subject, seen[0].identity.tenant) == ("service:router", "t")
    assert 50 < seen[0].time_left() <= 102  # gRPC rounds up to seconds
    assert 0 < seen[1].time_left() <= 10, "without a deadline the default counts"
    assert calls.current() is None, "nothing leaks out of the call"


async def test_a_call_without_a_deadline_gets_the_default_one(keys: MeshKeys) -> None:
    """A handler that hangs is ended, unary and streamed, and the caller told why."""

    async def infer(_: Any, __: Any) -> Any:
        await asyncio.Event().wait()

    async def stream(_: Any, __: Any) -> AsyncIterator[Any]:
        yield inference_pb2.InferStreamResponse()
        await asyncio.Event().wait()

    settings = settings_for(ServiceSettings, keys, default_deadline_s=0.1)
    async with (
        start_service(settings, build_probe(infer, stream)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        unary = await refusal(Stub(channel).Infer(request()))

        async def read() -> None:
            async for _ in Stub(channel).InferStream(stream_request()):
                pass

        streamed = await refusal(read())
    for error in (unary, streamed):
        assert type(error) is errors.DeadlineExceededError
        assert error.reason == "DEADLINE_EXCEEDED"


async def test_a_timeout_inside_a_handler_is_not_the_callers_deadline(keys: MeshKeys) -> None:
    """A TimeoutError that nobody turned into an error is a fault of ours."""

    async def infer(_: Any, __: Any) -> Any:
        raise TimeoutError

    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(infer)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        assert type(await refusal(Stub(channel).Infer(request()))) is errors.InternalError


async def test_work_that_was_cancelled_inside_does_not_leave_the_caller_waiting(
    keys: MeshKeys,
) -> None:
    """A cancelled future is UNAVAILABLE at once; gRPC alone would never answer."""

    async def infer(_: Any, __: Any) -> Any:
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.cancel()
        await waiting

    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(infer)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        error = await refusal(Stub(channel).Infer(request(), timeout=30))
    assert (type(error), error.reason) == (errors.UnavailableError, "WORK_CANCELLED")


async def test_a_caller_that_goes_away_cancels_the_handler(keys: MeshKeys) -> None:
    """Work for nobody stops, unary and streamed, and counts as CANCELLED."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def infer(_: Any, __: Any) -> Any:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def stream(_: Any, __: Any) -> AsyncIterator[Any]:
        try:
            yield inference_pb2.InferStreamResponse()
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    count = served("twinpath_rpc_server_calls_total", method=INFER, code="CANCELLED")
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(infer, stream)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        call = Stub(channel).Infer(request())
        waiting = asyncio.ensure_future(_read_one(call))
        await started.wait()
        waiting.cancel()
        await ended.wait()
        started.clear()
        ended.clear()
        responses = Stub(channel).InferStream(stream_request())
        await anext(aiter(responses))
        await started.wait()
        responses.cancel()
        await ended.wait()
    after = served("twinpath_rpc_server_calls_total", method=INFER, code="CANCELLED")
    assert after == count + 1
    assert served("twinpath_rpc_server_in_flight", method=INFER) == 0


async def _read_one(call: Any) -> Any:
    return await call


async def test_a_stream_whose_reader_stalls_and_leaves_is_closed(keys: MeshKeys) -> None:
    """The handler's own cleanup runs as soon as the call is over, not when memory is collected."""
    ended = asyncio.Event()

    async def stream(_: Any, __: Any) -> AsyncIterator[Any]:
        try:
            while True:
                chunk = inference_pb2.InferStreamResponse()
                chunk.chunk.outputs.add(raw=b"x" * 100_000)
                yield chunk  # flow control holds us here once the reader stalls
        finally:
            ended.set()

    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(None, stream)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        responses = Stub(channel).InferStream(stream_request())
        await anext(aiter(responses))
        await asyncio.sleep(0.1)
        responses.cancel()
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_method_that_nobody_listed_is_denied_even_with_streamed_requests(
    keys: MeshKeys, tmp_path: Any
) -> None:
    """Deny by default holds for every kind of method that is mounted, reflection too."""
    table = tmp_path / "none.yaml"
    table.write_text("/grpc.health.v1.Health/*: [anyone]\n")
    settings = settings_for(ServiceSettings, keys, access_file=table)
    async with (
        start_service(settings, build_probe()) as running,
        client(running.address) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        error = await refusal(anext(aiter(stub.ServerReflectionInfo(iter([ask])))))
    assert type(error) is errors.UnauthenticatedError


async def test_reflection_lists_what_is_mounted(keys: MeshKeys) -> None:
    """Tools such as grpcurl work without our protos."""
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = await anext(aiter(stub.ServerReflectionInfo(iter([ask]))))
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_an_unknown_method_is_unimplemented(keys: MeshKeys) -> None:
    """A method that no service here has."""
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        error = await refusal(channel.unary_unary("/twinpath.none.v1.None/Do")(b""))
    assert type(error) is errors.UnimplementedError


async def test_calls_are_counted_by_method_and_code(keys: MeshKeys) -> None:
    """The metrics tell what was served, and health checks are not among it."""

    async def infer(_: Any, __: Any) -> Any:
        raise errors.NotFoundError("MODEL_UNKNOWN", "no such model")

    labels = {"method": INFER, "code": "NOT_FOUND"}
    before = served("twinpath_rpc_server_calls_total", **labels)
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe(infer)) as running,
        client(running.address, keys.token("service:router")) as channel,
    ):
        await refusal(Stub(channel).Infer(request()))
    assert served("twinpath_rpc_server_calls_total", **labels) == before + 1
    assert served("twinpath_rpc_server_duration_seconds_count", method=INFER) > 0


async def test_no_token_is_ever_logged(keys: MeshKeys, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a good token nor one that is refused stands in any record, at any level."""
    caplog.set_level(logging.DEBUG)
    good = keys.token("service:router")
    bad = keys.token("service:router", lifetime_s=-60)
    async with (
        start_service(settings_for(ServiceSettings, keys), build_probe()) as running,
        client(running.address, good) as channel,
        client(running.address, bad) as other,
    ):
        await Stub(channel).Infer(request())
        await refusal(Stub(channel).Infer(inference_pb2.InferRequest()))
        error = await refusal(Stub(other).Infer(request()))
    assert error.reason == "TOKEN_EXPIRED"
    assert any(r.getMessage() == "call failed" for r in caplog.records)
    for record in caplog.records:
        text = f"{record.getMessage()} {vars(record)}"
        for token in (good, bad):
            assert token not in text
            assert token.rpartition(".")[2] not in text
