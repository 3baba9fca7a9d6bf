"""A call that serves several sampled decisions stands in each one's trace, with all below it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.chassis import channels, coalesce
from services.chassis.clock import SystemClock
from services.chassis.coalesce import Coalescer
from services.chassis.errors import ServiceError
from services.chassis.light_spans import LightProvider, shared, with_shared
from services.chassis.settings import ServiceSettings
from services.chassis.shared_traces import HEADER, SharedTraces
from tests.support import MeshKeys, settings_for, start_service
from tests.unit.chassis.probe import build_probe, request
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

FAR = 1e9


class Tracing:
    """Tracing as a service sets it up, with what was recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._exporter = InMemorySpanExporter()
        provider = LightProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        monkeypatch.setattr(coalesce, "_tracer", self.tracer)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """What has ended."""
        return self._exporter.get_finished_spans()

    def way(self, trace_id: int) -> list[str]:
        """The names of a trace's spans from its root on, if each but the first has its parent."""
        found: dict[int, Any] = {
            s.context.span_id: s for s in self.spans if s.context.trace_id == trace_id
        }
        roots = [span for span in found.values() if span.parent is None]
        assert len(roots) == 1
        names = []
        here = roots
        while here:
            assert len(here) == 1
            names.append(here[0].name)
            ids = here[0].context
            here = [s for s in found.values() if s.parent == ids or _same(s.parent, ids)]
        assert len(names) == len(found)
        return names


def _same(one: trace.SpanContext | None, other: trace.SpanContext) -> bool:
    """Whether two contexts name one span, be one of them remote."""
    return one is not None and (one.trace_id, one.span_id) == (other.trace_id, other.span_id)


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracing]:
    """All is sampled."""
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(CompositePropagator([before, SharedTraces()]))
    yield Tracing(monkeypatch)
    propagate.set_global_textmap(before)


async def test_each_trace_has_the_whole_call(tracing: Tracing, keys: MeshKeys) -> None:
    """Two decisions in one batch: hop, client, server and what it does, below each of them."""
    calls = 0

    async def serve(_: Any, __: Any) -> Any:
        nonlocal calls
        calls += 1
        with tracing.tracer.start_as_current_span("work"):
            return inference_pb2.InferResponse()

    settings = settings_for(ServiceSettings, keys, service="router")
    async with (
        start_service(settings, build_probe(serve)) as running,
        channels.connect(running.address, settings) as channel,
    ):
        stub = inference_pb2_grpc.InferenceStub(channel)

        async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
            await stub.Infer(request(), timeout=left)
            return list(items)

        hop: Coalescer[int, int] = Coalescer(flush, SystemClock(), share_traces=True)

        async def decide(number: int) -> int:
            with tracing.tracer.start_as_current_span(f"decision {number}") as span:
                await hop.submit(number, "lane", FAR)
                return span.get_span_context().trace_id

        ids = await asyncio.gather(*(decide(number) for number in range(3)))
        assert calls == 1
        alone = await decide(3)
    infer = "/twinpath.inference.v1.Inference/Infer"
    for number, trace_id in enumerate([*ids, alone]):
        assert tracing.way(trace_id) == [f"decision {number}", "hop", infer, infer, "work"]
    for span in tracing.spans:
        if span.name == "hop":
            assert span.context is not None
            others = {*ids} - {span.context.trace_id} if span.context.trace_id in ids else set()
            assert {link.context.trace_id for link in span.links} == others


async def test_items_of_one_trace_are_one_span_there(tracing: Tracing) -> None:
    """A request with several items has its hop once."""

    async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
        assert not shared()
        return list(items)

    hop: Coalescer[int, int] = Coalescer(flush, SystemClock(), share_traces=True)
    with tracing.tracer.start_as_current_span("request"):
        assert await asyncio.gather(*(hop.submit(n, "lane", FAR) for n in range(4))) == [0, 1, 2, 3]
    assert sorted(span.name for span in tracing.spans) == ["hop", "request"]


async def test_what_comes_after_the_call_is_in_no_other_s_trace(tracing: Tracing) -> None:
    """Neither the callers nor the next batch go on in the traces that were shared."""
    seen: list[Sequence[int]] = []

    async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
        seen.append(shared())
        return list(items)

    hop: Coalescer[int, int] = Coalescer(flush, SystemClock(), share_traces=True)

    async def decide() -> None:
        with tracing.tracer.start_as_current_span("decision"):
            await hop.submit(1, "lane", FAR)
            assert not shared()

    await asyncio.gather(decide(), decide())
    await decide()
    assert [len(others) for others in seen] == [1, 0]


@pytest.mark.parametrize(
    "sent", ["", "x", "0af7651916cd43dd8448eb211c80319c,", "0AF7651916CD43DD8448EB211C80319C"]
)
def test_a_header_that_is_no_list_of_ids_is_ignored(sent: str) -> None:
    """What a stranger sends breaks nothing."""
    assert shared(SharedTraces().extract({HEADER: sent}, Context())) == ()


def test_the_header_brings_the_ids() -> None:
    """What is written is read; where nothing is shared nothing is written."""
    carrier: dict[str, str] = {}
    SharedTraces().inject(carrier, Context())
    assert carrier == {}
    SharedTraces().inject(carrier, with_shared([1, 2**127], Context()))
    assert shared(SharedTraces().extract(carrier, Context())) == [1, 2**127]
