"""Traces: OpenTelemetry to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names.

Sampling follows OTEL_TRACES_SAMPLER and its argument (default: parent-based, always on;
parentbased_traceidratio with 0.1 takes a tenth). What it lets go is exported all the same if it
ends in an error, a fallback or a refusal (late_sampling.py), unless TWINPATH_TRACES_KEEP_FAILED
is false. Without an endpoint nothing is recorded, but the caller's trace context is still passed
on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

from grpc import StatusCode
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from services.chassis.late_sampling import LateExport, LateSpan
from services.chassis.light_spans import LightProvider
from services.chassis.shared_traces import SharedTraces
from services.chassis.span_export import SpanExporter
from twinpath.common.v1 import context_pb2

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
KEEP_FAILED = "TWINPATH_TRACES_KEEP_FAILED"


def setup(service: str) -> TracerProvider | None:
    """Install the tracer provider of this process; None when no endpoint is set."""
    endpoint = os.environ.get(ENDPOINT) or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not endpoint:
        return None
    resource = Resource.create(
        {SERVICE_NAME: f"twinpath-{service}", SERVICE_INSTANCE_ID: str(os.getpid())}
    )
    provider = LightProvider(resource=resource)
    exporter = SpanExporter(insecure=not endpoint.startswith("https"))
    batches = BatchSpanProcessor(exporter, schedule_delay_millis=500)
    provider.add_span_processor(batches)
    trace.set_tracer_provider(provider)
    usual = propagate.get_global_textmap()
    propagate.set_global_textmap(CompositePropagator([usual, SharedTraces()]))
    if os.environ.get(KEEP_FAILED, "true").lower() != "false":
        keep_failed(LateExport(batches.on_end, resource, provider.id_generator.generate_span_id))
    return provider


_late: LateExport | None = None


def keep_failed(late: LateExport | None) -> None:
    """Say where local traces go that were not sampled and failed; None: nowhere."""
    global _late  # like the tracer provider, one for each process
    _late = late


def late_export() -> LateExport | None:
    """Return where such traces go, if anywhere."""
    return _late


def tracing() -> bool:
    """Tell whether this process records spans at all."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


# Health checks and descriptions are polled; their spans would bury the ones that people look for.
def worth_a_span(call: Any) -> bool:
    """Tell whether a call gets a span; grpc names its method in three ways."""
    method = getattr(call, "method", "") or getattr(call, "full_method", "")
    return named_worth_a_span(method.decode() if isinstance(method, bytes) else method)


@lru_cache(maxsize=256)
def named_worth_a_span(method: str) -> bool:
    """Tell whether calls of a method get spans."""
    return not method.startswith("/grpc.health.") and not method.endswith("/Describe")


_NO_SPAN: AbstractContextManager[trace.Span] = nullcontext(trace.INVALID_SPAN)


def step_span(tracer: trace.Tracer, name: str) -> AbstractContextManager[trace.Span]:
    """Return a span for a step of a call; nothing where the call itself is not sampled.

    A span that nobody records still costs 25 us of CPU, several times for each decision.
    """
    if not sampled():
        return _NO_SPAN
    return tracer.start_as_current_span(name)


def sampled() -> bool:
    """Tell whether the current trace is sampled."""
    return trace.get_current_span().get_span_context().trace_flags.sampled


def begin_span(tracer: trace.Tracer, name: str) -> trace.Span:
    """Begin a span that is worth noting in an unsampled trace too, in case that it fails."""
    parent = trace.get_current_span()
    return parent.child(name) if isinstance(parent, LateSpan) else tracer.start_span(name)


# As the conventions for gRPC have it: what is the server's fault.
_SERVERS_FAULT = frozenset(
    {
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    }
)


def note_failure(code: StatusCode, details: str) -> None:
    """Note the status of a failed call in its span."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code in _SERVERS_FAULT:
            span.set_status(trace.StatusCode.ERROR, details)


def trace_headers() -> tuple[tuple[str, str], ...]:
    """Return the headers by which another service joins the current trace; none without one."""
    here = trace.get_current_span().get_span_context()
    if not here.is_valid:
        return ()
    flags = here.trace_flags & trace.TraceFlags.SAMPLED
    parent = ("traceparent", f"00-{here.trace_id:032x}-{here.span_id:016x}-{flags:02x}")
    state = here.trace_state.to_header() if here.trace_state else ""
    return (parent, ("tracestate", state)) if state else (parent,)


def inject() -> context_pb2.TraceContext | None:
    """Return the current span's context for an item of a batch; None without a trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    if "traceparent" not in carrier:
        return None
    return context_pb2.TraceContext(
        traceparent=carrier["traceparent"], tracestate=carrier.get("tracestate", "")
    )


def extract(item: context_pb2.TraceContext) -> Context:
    """Return the OpenTelemetry context that an item carries."""
    carrier: Mapping[str, str] = {"traceparent": item.traceparent, "tracestate": item.tracestate}
    return propagate.extract(carrier)


def exemplar(*, also_unsampled: bool = False) -> dict[str, str] | None:
    """Return the current trace for a metric's exemplar; None where it won't be found."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid and (span.trace_flags.sampled or also_unsampled):
        return {"trace_id": f"{span.trace_id:032x}"}
    return None


def trace_id() -> str:
    """Return the current trace's id, 32 hex digits; empty without a trace."""
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else ""
