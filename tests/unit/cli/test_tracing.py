"""The built-in collector: takes OTLP in each form, keeps a bound, answers, and draws trees."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from rich.console import Console

from services.cli.tracing.collector import Collector
from services.cli.tracing.otlp import OtlpError, from_json, from_message
from services.cli.tracing.query import Traces, TracesGoneError
from services.cli.tracing.spans import Span, SpanStore
from services.cli.tracing.tree import duration, tree

TRACE = "0af7651916cd43dd8448eb211c80319c"
ROOT_SPAN = "b7ad6b7169203331"
CHILD = "00f067aa0ba902b7"


def span(trace_id: str = TRACE, span_id: str = ROOT_SPAN, parent: str = "", **more) -> Span:
    """A span of one millisecond."""
    given = {"service": "router", "name": "Infer", "kind": "SERVER", "start_ns": 0}
    return Span(
        trace_id=trace_id, span_id=span_id, parent_id=parent, end_ns=1_000_000, **(given | more)
    )


def message() -> trace_service_pb2.ExportTraceServiceRequest:
    """One span as the OpenTelemetry SDK sends it."""
    text = common_pb2.AnyValue
    service = common_pb2.KeyValue(key="service.name", value=text(string_value="router"))
    sent = trace_pb2.Span(
        trace_id=bytes.fromhex(TRACE),
        span_id=bytes.fromhex(CHILD),
        parent_span_id=bytes.fromhex(ROOT_SPAN),
        name="Infer",
        kind=trace_pb2.Span.SPAN_KIND_SERVER,
        start_time_unix_nano=5,
        end_time_unix_nano=9,
        status=trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message="no"),
        attributes=[common_pb2.KeyValue(key="n", value=text(int_value=3))],
    )
    return trace_service_pb2.ExportTraceServiceRequest(
        resource_spans=[
            trace_pb2.ResourceSpans(
                resource=resource_pb2.Resource(attributes=[service]),
                scope_spans=[trace_pb2.ScopeSpans(spans=[sent])],
            )
        ]
    )


# As Triton writes it: ids in hex digits, kinds as numbers, times as text or numbers.
JSON = {
    "resourceSpans": [
        {
            "resource": {
                "attributes": [{"key": "service.name", "value": {"stringValue": "triton"}}]
            },
            "scopeSpans": [
                {
                    "spans": [
                        {
                            "traceId": TRACE.upper(),
                            "spanId": CHILD,
                            "parentSpanId": ROOT_SPAN,
                            "name": "compute",
                            "kind": 2,
                            "startTimeUnixNano": "5",
                            "endTimeUnixNano": 9,
                            "attributes": [{"key": "v", "value": {"intValue": "1"}}],
                            "status": {"code": "STATUS_CODE_ERROR", "message": "no"},
                        }
                    ]
                }
            ],
        }
    ]
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on free ports."""
    running = Collector().start()
    yield running
    running.stop()


def post(collector: Collector, body: bytes, kind: str, **headers: str) -> int:
    """Post to OTLP/HTTP; the answer's status."""
    request = Request(
        f"{collector.url}/v1/traces", body, {"content-type": kind, **headers}, method="POST"
    )
    try:
        with urlopen(request, timeout=5) as reply:
            return reply.status
    except HTTPError as error:
        return error.code


def test_both_forms_of_otlp_give_the_same_span() -> None:
    """Ids in bytes and in hex digits, numbers as numbers and as text: one meaning."""
    (of_message,) = from_message(message())
    (of_json,) = from_json(json.dumps(JSON).encode())
    for field in ("trace_id", "span_id", "parent_id", "kind", "start_ns", "end_ns", "error"):
        assert getattr(of_message, field) == getattr(of_json, field)
    assert (of_message.service, of_json.service) == ("router", "triton")
    assert (of_message.attributes, of_json.attributes) == ({"n": 3}, {"v": 1})
    assert of_json.message == "no"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"resourceSpans": [{"scopeSpans": [{"spans": [{}]}]}]}']
)
def test_what_is_no_otlp_is_refused(body: bytes) -> None:
    """A body that can't be read raises, and says why."""
    with pytest.raises(OtlpError):
        from_json(body)


def test_spans_arrive_over_grpc_and_over_http(collector: Collector) -> None:
    """OTLP/gRPC, OTLP/HTTP in protobuf and in JSON, gzip or plain, end in one trace."""
    with grpc.insecure_channel(collector.endpoint.removeprefix("http://")) as channel:
        trace_service_pb2_grpc.TraceServiceStub(channel).Export(message(), timeout=5)
    assert [s.name for s in collector.spans.trace(TRACE)] == ["Infer"]
    other = message()
    other.resource_spans[0].scope_spans[0].spans[0].span_id = b"12345678"
    assert post(collector, other.SerializeToString(), "application/x-protobuf") == 200
    body = gzip.compress(json.dumps(JSON).replace(CHILD, "00f067aa0ba902b8").encode())
    assert post(collector, body, "application/json", **{"content-encoding": "gzip"}) == 200
    assert {s.service for s in collector.spans.trace(TRACE)} == {"router", "triton"}
    assert len(collector.spans) == 3


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        ("application/json", {}),
        ("application/x-protobuf", {}),
        ("application/json", {"content-encoding": "gzip"}),
    ],
)
def test_a_broken_export_is_a_bad_request(
    collector: Collector, kind: str, headers: dict[str, str]
) -> None:
    """The collector answers 400 and goes on."""
    assert post(collector, b"\xff\xff no", kind, **headers) == 400
    assert post(collector, json.dumps(JSON).encode(), "application/json") == 200


def test_traces_can_be_asked_for(collector: Collector) -> None:
    """A query gives the spans back as they came in; newest traces first, by attribute too."""
    collector.spans.add([span(links=("ab",)), span("1" * 32, attributes={"twinpath.task": "t"})])
    collector.spans.add([span("2" * 32)])
    traces = Traces(collector.url)
    assert traces.spans(TRACE) == [span(links=("ab",))]
    assert traces.spans("no-such-trace") == []
    assert traces.newest(2) == ["2" * 32, "1" * 32]
    assert traces.newest(5, "twinpath.task") == ["1" * 32]
    collector.stop()
    with pytest.raises(TracesGoneError):
        traces.newest(1)


def test_the_oldest_trace_goes_as_a_whole() -> None:
    """Over the limit whole traces are forgotten, and never a part of one."""
    store = SpanStore(limit=3)
    store.add([span("a", "1"), span("a", "2")])
    store.add([span("b", "1"), span("b", "1"), span("b", "2")])
    assert store.trace("a") == []
    assert [s.span_id for s in store.trace("b")] == ["1", "2"]
    assert (len(store), store.dropped) == (2, 2)


def test_a_tree_shows_who_called_whom_and_what_failed() -> None:
    """Children stand below their parents; orphans at the top; errors are marked."""
    spans = [
        span("t", "3", "missing", name="orphan", service="audit", start_ns=9),
        span("t", "2", "1", name="child", error=True, message="broke", start_ns=2),
        span("t", "1", name="/twinpath.router.v1.Router/Infer", service="twinpath-router"),
        span("t", "4", "4", name="own ancestor"),
    ]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(tree(spans))
    lines = console.export_text().splitlines()
    assert lines[1].startswith("├── router Router/Infer  1.0 ms")
    assert lines[2].startswith("│   └── router child")
    assert "✗ broke" in lines[2]
    assert lines[3].startswith("└── audit orphan")


@pytest.mark.parametrize(
    ("microseconds", "text"), [(0, "0 µs"), (999, "999 µs"), (4200, "4.2 ms"), (2.5e6, "2.50 s")]
)
def test_times_are_for_people(microseconds: float, text: str) -> None:
    """Microseconds, milliseconds or seconds, whichever is short."""
    assert duration(microseconds) == text
