"""One client span for each attempt, in the item's own trace; its context goes to the vendor.

Only the W3C trace context goes out, never baggage: that could hold anything. What the span says of
HTTP and of language models follows OpenTelemetry's conventions; of the URL it has no query, since
that may hold what the provider file calls a parameter and the vendor a key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.attributes import rpc_attributes
from opentelemetry.semconv._incubating.attributes.url_attributes import URL_TEMPLATE
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from yarl import URL

from services.chassis import telemetry
from services.remote.wire import Body, Parsed
from twinpath import telemetry as names
from twinpath.inference.v1 import grant_pb2, inference_pb2

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


def errand(provider: str, path: str) -> AbstractContextManager[trace.Span]:
    """Return a span around a request that asks no model: a file's upload, a look at a batch."""
    attributes = {names.PROVIDER: provider, names.PATH: "remote", URL_TEMPLATE: path}
    return _tracer.start_as_current_span(
        names.SPAN_BULK, kind=trace.SpanKind.CLIENT, attributes=attributes, record_exception=False
    )


def _passed_on(item: inference_pb2.InferItem) -> dict[str, str]:
    carrier: dict[str, str] = {}
    given = item.context.trace
    _w3c.inject(carrier, telemetry.extract(given) if given.traceparent else None)
    return carrier


@dataclass(frozen=True, slots=True)
class GenAi:
    """What a dialect says of itself in traces, if it speaks to language models.

    Attributes:
        operation: As the convention names it: `chat`, `embeddings`.
        system: Whose protocol it is: `openai`, `anthropic`.
    """

    operation: str
    system: str


def granted(claims: grant_pb2.GrantClaims) -> None:
    """Note on whose word an attempt is made: what a grant says that nothing is compared with."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute(names.CANDIDATE, claims.candidate)
    span.set_attribute(names.POLICY_VERSION, claims.policy_version)
    span.set_attribute(names.TASK, claims.task)


def asking(body: Body, url: URL) -> None:
    """Note what is asked by HTTP; of a path that holds values of the input, its template."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute(http_attributes.HTTP_REQUEST_METHOD, body.method)
    if body.route:
        span.set_attribute(URL_TEMPLATE, body.route)
    else:
        span.set_attribute(url_attributes.URL_FULL, str(url.with_query(None)))
    span.set_attribute(server_attributes.SERVER_ADDRESS, url.host or "")
    span.set_attribute(server_attributes.SERVER_PORT, url.port or 0)


def asking_grpc(method: str, target: str) -> None:
    """Note what is asked by gRPC, as `/service/Method` at `host:port`."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    host, _, port = target.rpartition(":")
    service, _, name = method.strip("/").partition("/")
    span.set_attribute(rpc_attributes.RPC_SYSTEM, "grpc")
    span.set_attribute(rpc_attributes.RPC_SERVICE, service)
    span.set_attribute(rpc_attributes.RPC_METHOD, name)
    span.set_attribute(server_attributes.SERVER_ADDRESS, host)
    span.set_attribute(server_attributes.SERVER_PORT, int(port))


def answered_grpc(code: int) -> None:
    """Note a gRPC answer's code."""
    trace.get_current_span().set_attribute(rpc_attributes.RPC_GRPC_STATUS_CODE, code)


def asking_model(kind: GenAi | None, model: str, max_tokens: int) -> None:
    """Note which language model is asked; nothing where it is none."""
    span = trace.get_current_span()
    if kind is None or not span.is_recording():
        return
    span.set_attribute(gen_ai.GEN_AI_OPERATION_NAME, kind.operation)
    span.set_attribute(gen_ai.GEN_AI_PROVIDER_NAME, kind.system)
    span.set_attribute(gen_ai.GEN_AI_REQUEST_MODEL, model)
    if max_tokens:
        span.set_attribute(gen_ai.GEN_AI_REQUEST_MAX_TOKENS, max_tokens)


def answered(status: int) -> None:
    """Note an answer's HTTP status; from 400 on it is the error's type as well."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute(http_attributes.HTTP_RESPONSE_STATUS_CODE, status)
    if status >= 400:
        span.set_attribute(error_attributes.ERROR_TYPE, str(status))


def model_answered(kind: GenAi | None, parsed: Parsed) -> None:
    """Note which language model answered, what it counted, and why it stopped."""
    span = trace.get_current_span()
    if kind is None or not span.is_recording():
        return
    span.set_attribute(gen_ai.GEN_AI_RESPONSE_MODEL, parsed.version)
    if parsed.finish_reason:
        reason = inference_pb2.FinishReason.Name(parsed.finish_reason)
        reasons = [reason.removeprefix("FINISH_REASON_").lower()]
        span.set_attribute(gen_ai.GEN_AI_RESPONSE_FINISH_REASONS, reasons)
    if parsed.usage is not None:
        usage = parsed.usage
        span.set_attribute(gen_ai.GEN_AI_USAGE_INPUT_TOKENS, usage.input_tokens)
        span.set_attribute(gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, usage.output_tokens)
        if usage.cached_input_tokens:
            cached = usage.cached_input_tokens
            span.set_attribute(gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, cached)
        if usage.cache_write_tokens:
            written = usage.cache_write_tokens
            span.set_attribute(gen_ai.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS, written)


def failed(span: trace.Span, reason: str) -> None:
    """Mark an attempt's span as failed, by the reason that the caller gets."""
    span.set_status(trace.StatusCode.ERROR, reason)
    if span.is_recording() and error_attributes.ERROR_TYPE not in (
        getattr(span, "attributes", None) or {}
    ):
        span.set_attribute(error_attributes.ERROR_TYPE, reason)
