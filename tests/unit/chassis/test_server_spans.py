"""The span of a served call says what OpenTelemetry's own instrumentation would say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from services.chassis import telemetry
from services.chassis.late_sampling import LateExport
from services.chassis.light_spans import LightProvider
from services.chassis.server_spans import with_span
from tests.unit.chassis.probe import INFER

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Served:
    """A served method with a span around it, or two of them, and what was recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exporter = InMemorySpanExporter()
        self._monkeypatch = monkeypatch
        self.sample(1.0)

    def sample(self, ratio: float) -> LightProvider:
        """Take a share of the traces that begin here."""
        provider = LightProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False
        )
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        return provider

    async def call(self, wrapped: Any, **headers: str) -> None:
        """Serve one method and call it from outside."""
        server = grpc.aio.server()
        service, _, name = INFER.lstrip("/").partition("/")
        server.add_registered_method_handlers(service, {name: wrapped})
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                ask: Any = channel.unary_unary(INFER)
                await ask(b"", metadata=tuple(headers.items()))
        except grpc.aio.AioRpcError:
            pass
        finally:
            await server.stop(0)

    @property
    def span(self) -> ReadableSpan:
        """The one that was recorded last."""
        return self.exporter.get_finished_spans()[-1]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """All that begins here is sampled, unless said otherwise."""
    yield Served(monkeypatch)
    telemetry.keep_failed(None)


async def _well(request: bytes, _: Any) -> bytes:
    return request


async def _badly(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
    telemetry.note_failure(grpc.StatusCode.UNAVAILABLE, "away")
    await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
    return b""


@pytest.mark.parametrize("behaviour", [_well, _badly])
async def test_a_sampled_call_has_the_instrumentations_attributes(
    served: Served, behaviour: Any
) -> None:
    """Name, kind, parent, every attribute and the status's code, of a call that went well or not."""
    handler: Any = grpc.unary_unary_rpc_method_handler(behaviour)

    async def as_it_is(_: Any) -> Any:
        return handler

    details: Any = SimpleNamespace(method=INFER)
    theirs = await aio_server_interceptor().intercept_service(as_it_is, details)
    seen = []
    for wrapped in (await with_span(INFER, handler), theirs):
        await served.call(wrapped, traceparent=TRACEPARENT)
        span = served.span
        attributes = dict(span.attributes or {})
        assert attributes.pop("net.peer.port")  # each call's own
        seen.append((span.name, span.kind, span.parent, attributes, span.status.status_code))
    assert seen[0] == seen[1]


async def test_an_unsampled_call_is_noted_and_exported_if_it_failed(served: Served) -> None:
    """With its method's name; in a trace that begins here, or in the caller's."""
    provider = served.sample(0.0)
    ids = provider.id_generator
    kept = SimpleSpanProcessor(served.exporter).on_end
    telemetry.keep_failed(LateExport(kept, provider.resource, ids.generate_span_id))
    wrapped = await with_span(INFER, grpc.unary_unary_rpc_method_handler(_badly))
    await served.call(wrapped)
    attributes = dict(served.span.attributes or {})
    assert served.span.parent is None
    service, _, name = INFER.lstrip("/").partition("/")
    assert (attributes["rpc.service"], attributes["rpc.method"]) == (service, name)
    assert attributes["rpc.grpc.status_code"] == 14
    await served.call(wrapped, traceparent=f"{TRACEPARENT[:-1]}0")
    assert served.span.parent is not None
    assert f"{served.span.parent.span_id:016x}" in TRACEPARENT
    wrapped = await with_span(INFER, grpc.unary_unary_rpc_method_handler(_well))
    await served.call(wrapped)
    assert len(served.exporter.get_finished_spans()) == 2


async def test_a_stream_s_span_lasts_as_long_as_the_stream(served: Served) -> None:
    """What happens between two messages stands below it."""

    async def many(_: bytes, __: Any) -> AsyncIterator[bytes]:
        for number in range(2):
            yield b"x"
            trace.get_tracer("t").start_span(f"after {number}").end()

    wrapped = await with_span(INFER, grpc.unary_stream_rpc_method_handler(many))
    server = grpc.aio.server()
    service, _, name = INFER.lstrip("/").partition("/")
    server.add_registered_method_handlers(service, {name: wrapped})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: Any = channel.unary_stream(INFER)
        assert [item async for item in ask(b"")] == [b"x", b"x"]
    await server.stop(0)
    first, second, whole = served.exporter.get_finished_spans()
    assert (first.name, second.name, whole.name) == ("after 0", "after 1", INFER)
    assert first.parent == second.parent == whole.context
