"""The span around a call of Triton, and the headers that make Triton's own spans join."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.chassis import telemetry
from services.chassis.errors import ServiceError
from services.local.exchange import Metadata
from services.local.models import Known
from twinpath import telemetry as names
from twinpath.inference.v1 import inference_pb2

_tracer = trace.get_tracer("twinpath.local")


def home(item: inference_pb2.InferItem, *, first: bool) -> Context | None:
    """Return the recorded trace that the request for an item belongs to; None without one.

    An item may carry its own; else a call runs in the trace of its first item.
    """
    own = item.context.trace.traceparent
    recorded = own and int(own[53:55], 16) & 1
    if not recorded and not first:
        return None  # as nearly all: nothing more to be looked at
    here = trace.get_current_span()
    ours = here.get_span_context()
    if own and f"{ours.trace_id:032x}" != own[3:35]:
        return telemetry.extract(item.context.trace) if recorded else None
    return trace.set_span_in_context(here) if first and ours.trace_flags.sampled else None


def call_of_triton(
    home: Context | None, known: Known, decision_id: str, items: int
) -> AbstractContextManager[Metadata]:
    """Return a context that gives the headers for a request that serves some items.

    It belongs to the recorded trace of one of them, if there is one. Where this process doesn't
    trace, that trace's own headers are passed on.
    """
    if home is None:
        return nullcontext(())
    if not telemetry.tracing():
        return nullcontext(_headers(home))
    attributes: dict[str, str | int] = {names.DECISION_ID: decision_id}
    if items > 1:
        attributes[names.BATCH_SIZE] = items
    return _Span(home, known, attributes)


def _headers(home: Context) -> Metadata:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, home)
    return list(carrier.items())


class _Span:
    """The span of one request to Triton."""

    def __init__(self, home: Context, known: Known, attributes: Mapping[str, str | int]) -> None:
        self._span = _tracer.start_span(
            names.SPAN_TRITON,
            context=home,
            kind=SpanKind.CLIENT,
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
        return _headers(trace.set_span_in_context(self._span))

    def __exit__(self, kind: object, error: BaseException | None, trace_back: object) -> None:
        if error is not None:
            reason = error.reason if isinstance(error, ServiceError) else type(error).__name__
            self._span.set_status(Status(StatusCode.ERROR, reason))
        self._span.end()
