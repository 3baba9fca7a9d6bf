"""The span around a call of Triton, and the headers that make Triton's own spans join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from opentelemetry import propagate, trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from services.chassis import telemetry
from services.chassis.errors import ServiceError
from services.local.models import Known
from services.local.triton import Metadata
from twinpath import telemetry as names
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import inference_pb2

_tracer = trace.get_tracer("twinpath.local")


def sampled(item: context_pb2.TraceContext) -> bool:
    """Tell whether an item belongs to a trace that is being recorded."""
    flags = item.traceparent[53:55]
    return bool(flags) and int(flags, 16) & 1 == 1


def call_of_triton(
    items: Sequence[inference_pb2.InferItem], known: Known
) -> AbstractContextManager[Metadata]:
    """Return a context that gives the headers for a call that serves these items.

    The call belongs to the trace of the first item, with links to those of the others. Where that
    trace is not recorded, or nothing is in this process, its own headers are passed on.
    """
    leader = items[0]
    if not telemetry.tracing() or not sampled(leader.context.trace):
        return nullcontext(_headers(leader.context.trace))
    links = []
    for item in items[1:]:
        if item.context.trace.traceparent:
            other = trace.get_current_span(telemetry.extract(item.context.trace))
            if other.get_span_context().is_valid:
                links.append(Link(other.get_span_context()))
    attributes: dict[str, str | int] = {names.DECISION_ID: leader.decision_id}
    if len(items) > 1:
        attributes[names.BATCH_SIZE] = len(items)
    return _Span(leader.context.trace, known, attributes, links)


def _headers(item: context_pb2.TraceContext) -> Metadata:
    if not item.traceparent:
        return ()
    headers = [("traceparent", item.traceparent)]
    if item.tracestate:
        headers.append(("tracestate", item.tracestate))
    return headers


class _Span:
    """The span of one call. It belongs to the item's own trace, and links to the call's."""

    def __init__(
        self,
        own: context_pb2.TraceContext,
        known: Known,
        attributes: Mapping[str, str | int],
        links: list[Link],
    ) -> None:
        here = trace.get_current_span().get_span_context()
        parent = telemetry.extract(own) if own.traceparent else None
        if parent is not None and here.is_valid:
            links = [*links, Link(here)]
        self._span = _tracer.start_span(
            names.SPAN_TRITON,
            context=parent,
            kind=SpanKind.CLIENT,
            links=links,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": "inference.GRPCInferenceService",
                names.PATH: "local",
                names.MODEL: known.name,
                names.MODEL_VERSION: known.version,
                **attributes,
            },
        )

    def __enter__(self) -> Metadata:
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        return list(carrier.items())

    def __exit__(self, kind: object, error: BaseException | None, trace_back: object) -> None:
        if error is not None:
            reason = error.reason if isinstance(error, ServiceError) else type(error).__name__
            self._span.set_status(Status(StatusCode.ERROR, reason))
        self._span.end()
