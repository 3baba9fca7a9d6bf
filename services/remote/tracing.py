"""One client span for each attempt, in the item's own trace; its context goes to the vendor.

Only the W3C trace context goes out, never baggage: that could hold anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.chassis import telemetry
from twinpath import telemetry as names
from twinpath.inference.v1 import inference_pb2

_tracer = trace.get_tracer(__name__)
_w3c = TraceContextTextMapPropagator()


@contextlib.contextmanager
def attempt(item: inference_pb2.InferItem) -> Iterator[tuple[trace.Span, dict[str, str]]]:
    """Open the span of one attempt.

    Yields:
        The span, and the headers that carry its context to the vendor.
    """
    if not telemetry.tracing():
        # Nothing is recorded here; the item's own trace still goes on to the vendor.
        yield trace.INVALID_SPAN, _passed_on(item)
        return
    call = trace.get_current_span().get_span_context()
    parent, links = otel.get_current(), []
    if item.context.trace.traceparent:
        own = telemetry.extract(item.context.trace)
        if trace.get_current_span(own).get_span_context().trace_id != call.trace_id:
            parent = own
            links = [trace.Link(call)] if call.is_valid else []
    attributes = {
        names.DECISION_ID: item.decision_id,
        names.MODEL: item.model,
        names.PATH: "remote",
        names.PROVIDER: item.provider,
    }
    with _tracer.start_as_current_span(
        names.SPAN_VENDOR,
        parent,
        kind=trace.SpanKind.CLIENT,
        attributes=attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        carrier: dict[str, str] = {}
        _w3c.inject(carrier)
        yield span, carrier


def _passed_on(item: inference_pb2.InferItem) -> dict[str, str]:
    carrier: dict[str, str] = {}
    given = item.context.trace
    _w3c.inject(carrier, telemetry.extract(given) if given.traceparent else None)
    return carrier
