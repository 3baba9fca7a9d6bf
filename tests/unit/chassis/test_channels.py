"""Calls from service to service: identity, deadline and trace travel by themselves.

Every test runs twice: over a socket, and with the called services hosted in the caller's process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from services.chassis import call as calls
from services.chassis import channels, errors, inprocess, run, telemetry
from services.chassis.call import Call, Identity
from services.chassis.settings import ServiceSettings
from tests import support
from tests.support import MeshKeys, client, refusal, settings_for
from tests.unit.chassis.probe import build_probe, request, stream_request
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2

Stub = inference_pb2_grpc.InferenceStub
# gRPC sends what is left as a rounded-up number, a tenth of a second too much at worst; each hop
# ends its own call in time all the same.
ROUNDED = 0.3
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


HOSTED = ContextVar("HOSTED", default=False)


@pytest.fixture(autouse=True, params=[False, True], ids=["socket", "inprocess"])
def hosted(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether services that the test starts are called in the process."""
    token = HOSTED.set(request.param)
    yield request.param
    HOSTED.reset(token)


@asynccontextmanager
async def start_service(
    settings: ServiceSettings, build: run.Build[ServiceSettings]
) -> AsyncIterator[run.Running]:
    """Start a service, hosted for its callers in this process or not."""
    async with support.start_service(settings, build) as running:
        if not HOSTED.get():
            yield running
            return
        with inprocess.hosted(running.address, running.handlers):
            yield running


class Chain:
    """Two services; the first answers by asking the second over a chassis channel."""

    def __init__(self, keys: MeshKeys) -> None:
        self.keys = keys
        self.arrived: list[tuple[Call, str]] = []
        self.first = ""
        self.fail: errors.ServiceError | None = None
        self.timeout: float | None = None

    async def start(self, stack: AsyncExitStack) -> None:
        """Start both."""

        async def last(_: Any, __: Any) -> Any:
            call = calls.current()
            assert call is not None
            self.arrived.append((call, telemetry.trace_id()))
            if self.fail is not None:
                raise self.fail
            return inference_pb2.InferResponse()

        async def last_stream(_: Any, __: Any) -> AsyncIterator[Any]:
            await last(None, None)
            yield inference_pb2.InferStreamResponse()
            yield inference_pb2.InferStreamResponse()

        settings = settings_for(ServiceSettings, self.keys, service="router")
        second = await stack.enter_async_context(
            start_service(settings, build_probe(last, last_stream))
        )
        channel = await stack.enter_async_context(channels.connect(second.address, settings))
        stub = Stub(channel)

        async def hop(message: Any, _: Any) -> Any:
            try:
                return await stub.Infer(message, timeout=self.timeout)
            except grpc.aio.AioRpcError as error:
                raise errors.from_rpc_error(error) from None

        async def hop_stream(message: Any, _: Any) -> AsyncIterator[Any]:
            async for response in stub.InferStream(message):
                yield response

        first = await stack.enter_async_context(
            start_service(settings, build_probe(hop, hop_stream))
        )
        self.first = first.address


@pytest.fixture
async def chain(keys: MeshKeys) -> AsyncIterator[Chain]:
    """A chain of two services that runs."""
    made = Chain(keys)
    async with AsyncExitStack() as stack:
        await made.start(stack)
        yield made


async def test_the_deadline_is_passed_on_from_hop_to_hop(chain: Chain) -> None:
    """The last service knows the first caller's deadline, unary and streamed."""
    async with client(chain.first, chain.keys.token("service:router")) as channel:
        start = time.monotonic()
        await Stub(channel).Infer(request(), timeout=77)
        async for _ in Stub(channel).InferStream(stream_request(), timeout=77):
            pass
    assert len(chain.arrived) == 2
    for call, _ in chain.arrived:
        assert start + 60 < call.deadline <= time.monotonic() + 77 + ROUNDED


async def test_a_hop_may_take_less_than_the_caller_left_but_never_more(chain: Chain) -> None:
    """Of an explicit timeout and the caller's deadline, the lesser counts."""
    async with client(chain.first, chain.keys.token("service:router")) as channel:
        chain.timeout = 33
        await Stub(channel).Infer(request(), timeout=77)
        chain.timeout = 500
        await Stub(channel).Infer(request(), timeout=77)
    less, more = (call.time_left() for call, _ in chain.arrived)
    assert less <= 33 + ROUNDED
    assert 33 + ROUNDED < more <= 77 + ROUNDED


async def test_no_call_is_made_once_the_time_is_up(keys: MeshKeys) -> None:
    """What is left of a deadline in the past is nothing: the second service never hears of it."""
    heard: list[bool] = []

    async def infer(_: Any, __: Any) -> Any:
        heard.append(True)
        return inference_pb2.InferResponse()

    async def stream(_: Any, __: Any) -> AsyncIterator[Any]:
        heard.append(True)
        yield inference_pb2.InferStreamResponse()

    settings = settings_for(ServiceSettings, keys, service="router")
    async with (
        start_service(settings, build_probe(infer, stream)) as running,
        channels.connect(running.address, settings) as channel,
    ):
        calls.enter(Call("/a.B/C", Identity("ann"), time.monotonic() - 1))
        try:
            error = await refusal(Stub(channel).Infer(request()))
            streamed = await refusal(anext(aiter(Stub(channel).InferStream(stream_request()))))
        finally:
            calls.enter(None)
        await Stub(channel).Infer(request())
    assert type(error) is errors.DeadlineExceededError
    assert type(streamed) is errors.DeadlineExceededError
    assert heard == [True]


async def test_outside_of_a_call_the_default_deadline_counts(keys: MeshKeys) -> None:
    """No call of a service waits for ever."""
    left: list[float] = []

    async def infer(_: Any, __: Any) -> Any:
        call = calls.current()
        assert call is not None
        left.append(call.time_left())
        return inference_pb2.InferResponse()

    settings = settings_for(ServiceSettings, keys, service="router", default_deadline_s=44.0)
    async with (
        start_service(settings, build_probe(infer)) as running,
        channels.connect(running.address, settings) as channel,
    ):
        await Stub(channel).Infer(request())
    assert 11 < left[0] <= 44 + ROUNDED


async def test_a_channel_sends_the_services_own_identity_not_the_callers(chain: Chain) -> None:
    """The caller's token stays at the first hop: behind it, the service speaks for itself."""
    token = chain.keys.token("service:router", tenant="callers-tenant")
    async with client(chain.first, token) as channel:
        await Stub(channel).Infer(request())
    ((call, _),) = chain.arrived
    assert call.identity.subject == "service:router"
    assert call.identity.tenant == ""


async def test_a_channel_without_a_token_is_nobody(keys: MeshKeys) -> None:
    """Without a token file and without mTLS the next service refuses."""
    settings = settings_for(ServiceSettings, keys)
    async with (
        start_service(settings, build_probe()) as running,
        channels.connect(running.address, settings) as channel,
    ):
        error = await refusal(Stub(channel).Infer(request()))
    assert (type(error), error.reason) == (errors.UnauthenticatedError, "TOKEN_MISSING")


async def test_an_error_keeps_its_details_over_two_hops(chain: Chain) -> None:
    """Code, reason and metadata of the last service reach the first caller."""
    chain.fail = errors.NotFoundError("MODEL_UNKNOWN", "no such model", metadata={"model": "m"})
    async with client(chain.first, chain.keys.token("service:router")) as channel:
        error = await refusal(Stub(channel).Infer(request()))
        streamed = await refusal(anext(aiter(Stub(channel).InferStream(stream_request()))))
    for found in (error, streamed):
        assert type(found) is errors.NotFoundError
        assert (found.reason, found.metadata) == ("MODEL_UNKNOWN", {"model": "m"})


async def test_streams_pass_through_the_channel_whole(chain: Chain) -> None:
    """Every message of a stream arrives, in order, and the stream ends."""
    async with client(chain.first, chain.keys.token("service:router")) as channel:
        found = [m async for m in Stub(channel).InferStream(stream_request())]
    assert len(found) == 2


async def test_a_caller_that_leaves_cancels_the_whole_chain(keys: MeshKeys) -> None:
    """Cancellation travels: the last service does not work for nobody."""
    entered, ended = asyncio.Event(), asyncio.Event()

    async def last(_: Any, __: Any) -> Any:
        try:
            entered.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    settings = settings_for(ServiceSettings, keys, service="router")
    async with (
        start_service(settings, build_probe(last)) as second,
        channels.connect(second.address, settings) as onward,
    ):

        async def hop(message: Any, _: Any) -> Any:
            return await Stub(onward).Infer(message)

        async with (
            start_service(settings, build_probe(hop)) as first,
            client(first.address, keys.token("service:router")) as channel,
        ):
            call = Stub(channel).Infer(request())
            waiting = asyncio.ensure_future(refusal(call))
            await entered.wait()
            call.cancel()
            await ended.wait()
            waiting.cancel()


async def test_without_tracing_the_callers_trace_context_is_handed_on(chain: Chain) -> None:
    """A process that records no spans still does not cut the trace."""
    metadata = (("traceparent", TRACEPARENT), ("tracestate", "vendor=1"))
    async with client(chain.first, chain.keys.token("service:router")) as channel:
        await Stub(channel).Infer(request(), metadata=metadata)
        await Stub(channel).Infer(request())
    assert [found for _, found in chain.arrived] == [TRACE, ""]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Tracing, with what was recorded."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


async def test_one_trace_from_the_caller_through_every_hop(
    spans: InMemorySpanExporter, keys: MeshKeys
) -> None:
    """Each hop has a client's and a server's span, each the child of the one before."""
    chain = Chain(keys)
    async with AsyncExitStack() as stack:
        await chain.start(stack)
        async with client(chain.first, keys.token("service:router")) as channel:
            await Stub(channel).Infer(request(), metadata=(("traceparent", TRACEPARENT),))
    assert [found for _, found in chain.arrived] == [TRACE]
    found = [s for s in spans.get_finished_spans() if "Infer" in s.name]
    assert len(found) == 3
    parent = int("b7ad6b7169203331", 16)
    for _ in range(3):
        (child,) = [s for s in found if s.parent and s.parent.span_id == parent]
        assert f"{child.context.trace_id:032x}" == TRACE
        parent = child.context.span_id


async def test_a_failed_calls_span_says_so(spans: InMemorySpanExporter, keys: MeshKeys) -> None:
    """A span that says OK about a call that failed would hide it."""
    chain = Chain(keys)
    chain.fail = errors.UnavailableError("TRITON_UNAVAILABLE", "away")
    async with AsyncExitStack() as stack:
        await chain.start(stack)
        async with client(chain.first, keys.token("service:router")) as channel:
            await refusal(Stub(channel).Infer(request()))
    servers = [s for s in spans.get_finished_spans() if s.kind is trace.SpanKind.SERVER]
    assert len(servers) == 2
    for span in servers:
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["rpc.grpc.status_code"] == 14


async def test_health_checks_leave_no_spans(spans: InMemorySpanExporter, keys: MeshKeys) -> None:
    """Pings every second would bury what a trace is for."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    settings = settings_for(ServiceSettings, keys, service="router")
    async with (
        start_service(settings, build_probe()) as running,
        channels.connect(running.address, settings) as channel,
    ):
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert not [s for s in spans.get_finished_spans() if "Health" in s.name]


async def test_a_deadline_ends_the_wait_for_a_handler_that_does_not_stop(keys: MeshKeys) -> None:
    """The caller hears DEADLINE_EXCEEDED; what the handler still tidies up is not its concern."""
    stopping, go = asyncio.Event(), asyncio.Event()

    async def stubborn(_: Any, __: Any) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopping.set()
            await go.wait()
            raise

    async def stubborn_stream(_: Any, __: Any) -> AsyncIterator[Any]:
        yield inference_pb2.InferStreamResponse()
        await stubborn(None, None)

    settings = settings_for(ServiceSettings, keys, service="router")
    async with (
        start_service(settings, build_probe(stubborn, stubborn_stream)) as running,
        channels.connect(running.address, settings) as channel,
    ):
        error = await refusal(Stub(channel).Infer(request(), timeout=0.2))
        await stopping.wait()
        messages = aiter(Stub(channel).InferStream(stream_request(), timeout=0.2))
        await anext(messages)
        streamed = await refusal(anext(messages))
        go.set()
    assert type(error) is errors.DeadlineExceededError
    assert type(streamed) is errors.DeadlineExceededError


async def test_who_leaves_a_stream_ends_it(keys: MeshKeys) -> None:
    """A handler does not produce for nobody."""
    ended = asyncio.Event()

    async def endless(_: Any, __: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield inference_pb2.InferStreamResponse()
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    settings = settings_for(ServiceSettings, keys, service="router")
    async with (
        start_service(settings, build_probe(None, endless)) as running,
        channels.connect(running.address, settings) as channel,
    ):
        call = Stub(channel).InferStream(stream_request())
        await anext(aiter(call))
        call.cancel()
        await ended.wait()


async def test_a_slow_reader_holds_a_stream_back(keys: MeshKeys) -> None:
    """What nobody reads is not produced: memory stays bounded, whatever the stream's length."""
    produced = 0
    chunk = inference_pb2.InferStreamResponse(
        chunk=inference_pb2.InferChunk(outputs=[tensor_pb2.Tensor(name="text", raw=bytes(1 << 18))])
    )

    async def fast(_: Any, __: Any) -> AsyncIterator[Any]:
        nonlocal produced
        for _number in range(200):
            produced += 1
            yield chunk

    settings = settings_for(ServiceSettings, keys, service="router")
    async with (
        start_service(settings, build_probe(None, fast)) as running,
        channels.connect(running.address, settings) as channel,
    ):
        messages = aiter(Stub(channel).InferStream(stream_request(), timeout=60))
        await anext(messages)
        await asyncio.sleep(0.3)
        ahead = produced
        rest = [m async for m in messages]
    assert ahead < 100, "200 would be the whole stream"
    assert len(rest) == 199


async def test_what_the_server_cannot_take_has_a_status(keys: MeshKeys) -> None:
    """A method that is not there, and a request that is too large."""
    settings = settings_for(ServiceSettings, keys, service="router", max_message_bytes=4096)
    large = request()
    large.items[0].input.tensors[0].raw = bytes(5000)
    async with (
        start_service(settings, build_probe()) as running,
        channels.connect(running.address, settings) as channel,
    ):
        missing = await refusal(audit_pb2_grpc.AuditStub(channel).Get(audit_pb2.GetRequest()))
        too_large = await refusal(Stub(channel).Infer(large))
    assert missing.code is grpc.StatusCode.UNIMPLEMENTED
    assert too_large.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_handler_knows_nothing_of_its_callers_task(keys: MeshKeys) -> None:
    """Context variables stay on their side: only what a message or a header says gets over."""
    secret: ContextVar[str] = ContextVar("secret", default="")
    seen: list[str] = []

    async def look(_: Any, __: Any) -> Any:
        seen.append(secret.get())
        return inference_pb2.InferResponse()

    settings = settings_for(ServiceSettings, keys, service="router")
    async with (
        start_service(settings, build_probe(look)) as running,
        channels.connect(running.address, settings) as channel,
    ):
        secret.set("the caller's")
        await Stub(channel).Infer(request())
    assert seen == [""]


def test_an_items_trace_context_survives_the_batch(spans: InMemorySpanExporter) -> None:
    """What inject writes into an item, extract gives back."""
    del spans
    with trace.get_tracer("t").start_as_current_span("one") as span:
        item = telemetry.inject()
        assert item is not None
    context = telemetry.extract(item)
    found = trace.get_current_span(context).get_span_context()
    assert found.trace_id == span.get_span_context().trace_id
    assert telemetry.inject() is None
