"""The stand-in vendor's own spans: it joins the trace of a caller that sends one, as vendors may.

Spans go to OTEL_EXPORTER_OTLP_ENDPOINT (OTLP over gRPC); without it there are none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_tracer = trace.get_tracer(__name__)
_w3c = TraceContextTextMapPropagator()


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Send spans while this is open, if an endpoint is set; the rest of them at its end."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        yield
        return
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "standin-vendor"}))
    exporter = OTLPSpanExporter(insecure=not endpoint.startswith("https"))
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


@contextlib.contextmanager
def inference(headers: Mapping[str, str], model: str) -> Iterator[trace.Span]:
    """Open the span of one inference, below the caller's if the headers name one."""
    parent = _w3c.extract({name.lower(): value for name, value in headers.items()})
    with _tracer.start_as_current_span(
        "standin.infer",
        parent,
        kind=trace.SpanKind.SERVER,
        attributes={"standin.model": model},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span
