"""Light spans are the SDK's to whoever reads them, and reach the collector as the SDK's would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from services.chassis.light_spans import LightProvider
from services.chassis.span_export import encode

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
FAR = SpanContext(5, 6, is_remote=True, trace_flags=SAMPLED)


class Rig:
    """A provider with an exporter that can be read."""

    def __init__(self, kind: type[TracerProvider] = LightProvider, **given: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = kind(shutdown_on_exit=False, **given)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test", "1.0")

    @property
    def spans(self) -> dict[str, Any]:
        """What has ended, by name."""
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture(params=[LightProvider, TracerProvider], ids=["light", "sdk"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Light spans, and the SDK's own, of which the same must hold."""
    return Rig(request.param)


def test_a_span_stands_below_the_current_one(rig: Rig) -> None:
    """In its trace; without a current one it begins a trace. Both carry what was noted."""
    with rig.tracer.start_as_current_span("outer", attributes={"a": 1}) as outer:
        inner = rig.tracer.start_span("inner", kind=SpanKind.CLIENT, links=[Link(FAR)])
        inner.set_attribute("b", "two")
        inner.end()
        outer.set_attributes({"c": True})
    below, above = rig.spans["inner"], rig.spans["outer"]
    assert above.parent is None
    assert below.parent == above.context
    assert below.context.trace_id == above.context.trace_id
    assert below.context.trace_flags.sampled
    assert (below.kind, above.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert dict(below.attributes or {}) == {"b": "two"}
    assert dict(above.attributes or {}) == {"a": 1, "c": True}
    assert [link.context for link in below.links] == [FAR]
    assert above.start_time <= below.start_time <= below.end_time <= above.end_time
    assert below.instrumentation_scope.name == "test"
    assert below.resource == rig.provider.resource


def test_a_remote_parent_is_joined(rig: Rig) -> None:
    """A given context counts, and not the current one."""
    here = trace.set_span_in_context(trace.NonRecordingSpan(FAR))
    with rig.tracer.start_as_current_span("other"):
        rig.tracer.start_span("mine", here).end()
    assert rig.spans["mine"].parent == FAR
    assert rig.spans["mine"].context.trace_id == FAR.trace_id


def test_a_span_ends_once(rig: Rig) -> None:
    """A second end changes nothing, and neither does what comes after the first."""
    span = rig.tracer.start_span("once")
    span.end(77)
    span.set_attribute("late", 1)
    span.end(99)
    assert not span.is_recording()
    assert rig.spans["once"].end_time == 77
    assert not rig.spans["once"].attributes


def test_an_exception_is_an_error_and_goes_on(rig: Rig) -> None:
    """The span says which it was; the caller gets it."""
    with pytest.raises(ValueError, match="broken"), rig.tracer.start_as_current_span("failing"):
        raise ValueError("broken")
    span = rig.spans["failing"]
    assert span.status.status_code is StatusCode.ERROR
    (event,) = span.events
    assert (event.attributes or {})["exception.type"] == "ValueError"


def test_what_is_well_stays_well(rig: Rig) -> None:
    """OK is final, as the specification has it."""
    span = rig.tracer.start_span("fine")
    span.set_status(StatusCode.OK)
    span.set_status(StatusCode.ERROR, "later")
    span.end()
    assert rig.spans["fine"].status.status_code is StatusCode.OK


@pytest.mark.parametrize(
    ("sampler", "parent", "kept"),
    [
        (ALWAYS_OFF, None, False),
        (ParentBased(TraceIdRatioBased(0.0)), None, False),
        (ParentBased(TraceIdRatioBased(0.0)), FAR, True),
        (ParentBased(TraceIdRatioBased(1.0)), SpanContext(5, 6, is_remote=True), False),
    ],
)
def test_the_sampler_decides(sampler: Any, parent: SpanContext | None, *, kept: bool) -> None:
    """What it lets go is not recorded, but has ids that can be passed on."""
    rig = Rig(sampler=sampler)
    here = trace.set_span_in_context(trace.NonRecordingSpan(parent)) if parent else None
    span = rig.tracer.start_span("asked", here)
    span.end()
    assert ("asked" in rig.spans) is kept
    assert span.get_span_context().is_valid
    assert span.get_span_context().trace_flags.sampled is kept


CONTEXTS = st.builds(
    SpanContext,
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
    trace_flags=st.sampled_from([TraceFlags(0), SAMPLED]),
)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from([0, 1, True, False, 0.0, 1.0, ["a", "b"], [1]]),
)


@settings(max_examples=150, deadline=None)
@given(
    spans=st.lists(
        st.tuples(
            CONTEXTS,
            st.sampled_from(list(SpanKind)),
            st.dictionaries(st.sampled_from("abcde"), VALUES),
            st.lists(CONTEXTS, max_size=3),
            st.sampled_from([Status(), Status(StatusCode.OK), Status(StatusCode.ERROR, "why")]),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_the_collector_gets_what_the_library_would_send(spans: list[Any]) -> None:
    """Span by span the same message, in the same scope, under the same resource."""
    rig = Rig()
    made: list[Any] = []
    for number, (parent, kind, attributes, links, status, event) in enumerate(spans):
        here = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        tracer = rig.provider.get_tracer(f"scope {number % 2}", "1", attributes={"x": 1})
        linked = [Link(one) for one in links]
        span: Any = tracer.start_span(f"span {number}", here, kind, attributes, linked)
        if not span.is_recording():
            continue
        span.set_status(status)
        if event:
            span.add_event("happened", {"e": 1})
        span.end()
        made.append(span)

    def told(request: Any) -> list[bytes]:
        return sorted(
            part.resource.SerializeToString(deterministic=True)
            + place.scope.SerializeToString(deterministic=True)
            + span.SerializeToString(deterministic=True)
            for part in request.resource_spans
            for place in part.scope_spans
            for span in place.spans
        )

    assert told(encode(made)) == told(encode_spans(made))
