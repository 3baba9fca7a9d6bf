"""OTLP into spans: protobuf as it is, and JSON as OTLP has it.

OTLP's JSON is not protobuf's JSON: ids are hex digits there, not base64, and enums may be numbers.
Triton writes this form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.cli.tracing.spans import Attribute, Span

_KINDS = ("", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_ERROR = 2
_SERVICE = "service.name"
_INSTANCE = "service.instance.id"


class OtlpError(ValueError):
    """The body is not OTLP traces."""


def from_message(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Read a protobuf message."""
    for batch in request.resource_spans:
        resource = _attributes_of_message(batch.resource.attributes)
        for scope in batch.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    service=str(resource.get(_SERVICE, "unknown")),
                    name=span.name,
                    kind=_kind(span.kind),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    error=span.status.code == _ERROR,
                    message=span.status.message,
                    attributes=_attributes_of_message(span.attributes),
                    links=tuple(link.trace_id.hex() for link in span.links),
                    process=str(resource.get(_INSTANCE, "")),
                )


def from_json(body: bytes) -> list[Span]:
    """Read OTLP/JSON.

    Raises:
        OtlpError: It is no JSON, or not of OTLP's form.
    """
    try:
        data = json.loads(body)
        return list(_from_json(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OtlpError(f"not OTLP/JSON traces: {type(error).__name__}: {error}") from error


def _from_json(data: Mapping[str, Any]) -> Iterator[Span]:
    for batch in data.get("resourceSpans", ()):
        resource = _attributes_of_json(batch.get("resource", {}).get("attributes", ()))
        for scope in batch.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                status = span.get("status") or {}
                yield Span(
                    trace_id=span["traceId"].lower(),
                    span_id=span["spanId"].lower(),
                    parent_id=_parent(span.get("parentSpanId", "")),
                    service=str(resource.get(_SERVICE, "unknown")),
                    name=str(span.get("name", "")),
                    kind=_kind(span.get("kind", 0)),
                    start_ns=int(span["startTimeUnixNano"]),
                    end_ns=int(span["endTimeUnixNano"]),
                    error=status.get("code") in (_ERROR, "STATUS_CODE_ERROR"),
                    message=str(status.get("message", "")),
                    attributes=_attributes_of_json(span.get("attributes") or ()),
                    links=tuple(link["traceId"].lower() for link in span.get("links") or ()),
                    process=str(resource.get(_INSTANCE, "")),
                )


def _parent(span_id: str) -> str:
    # A root's parent may be written as zeros.
    return span_id.lower() if span_id.strip("0") else ""


def _kind(kind: int | str) -> str:
    if isinstance(kind, str):
        return kind.removeprefix("SPAN_KIND_")
    return _KINDS[kind] if 0 <= kind < len(_KINDS) else ""


def _attributes_of_message(pairs: Iterable[Any]) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        if kind in {"string_value", "int_value", "double_value", "bool_value"}:
            found[pair.key] = getattr(pair.value, kind)
    return found


def _attributes_of_json(pairs: Iterable[Mapping[str, Any]]) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for pair in pairs:
        for kind, value in pair.get("value", {}).items():
            if kind == "intValue":  # 64-bit numbers are text in JSON
                found[pair["key"]] = int(value)
            elif kind in {"stringValue", "doubleValue", "boolValue"}:
                found[pair["key"]] = value
    return found
