"""What is exported of traces that the ratio let go."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanContext, StatusCode

from services.chassis import late_sampling, telemetry
from services.chassis.late_sampling import LateExport, LateSpan
from twinpath import telemetry as names

TRACE = 0x1234


class Rig:
    """Unsampled traces as a service has them, with an exporter that can be read."""

    def __init__(self, **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        ids = RandomIdGenerator()
        direct = SimpleSpanProcessor(self.exporter)
        resource = Resource.create({})
        self.late = LateExport(direct.on_end, resource, ids.generate_span_id, **settings)

    @property
    def names(self) -> list[str]:
        """Names of what was exported."""
        return [span.name for span in self.exporter.get_finished_spans()]

    def root(self, parent: SpanContext | None = None) -> LateSpan:
        """A server span that the ratio let go."""
        return self.late.root("server", TRACE, parent)

    def request(self, mark: str = "", value: object = None, *, fails: bool = False) -> None:
        """A server span with a child that may carry a mark."""
        root = self.root()
        child = root.child("attempt")
        if mark:
            child.set_attribute(mark, value)
        child.end()
        if fails:
            root.set_status(StatusCode.ERROR)
        root.end()


@pytest.fixture
def rig() -> Rig:
    """Everything is let go by the ratio."""
    return Rig()


def test_a_request_that_went_well_is_forgotten(rig: Rig) -> None:
    """Nothing is exported."""
    rig.request()
    rig.request(names.FALLBACK, value=False)
    assert rig.names == []


def test_an_error_brings_the_whole_local_trace(rig: Rig) -> None:
    """Root and children are exported as one trace, marked as sampled, parents intact."""
    rig.request(fails=True)
    child, root = rig.exporter.get_finished_spans()
    assert (child.name, root.name) == ("attempt", "server")
    assert child.context.trace_id == root.context.trace_id
    assert child.parent.span_id == root.context.span_id
    assert child.context.trace_flags.sampled
    assert root.context.trace_flags.sampled


@pytest.mark.parametrize(
    ("mark", "value"), [(names.FALLBACK, True), (names.REFUSED_RULE, ["restricted_stays"])]
)
def test_a_fallback_and_a_refusal_bring_it_too(rig: Rig, mark: str, value: object) -> None:
    """Also when the call as a whole went well, and the mark stands on a span below the root."""
    rig.request(mark, value)
    assert rig.names == ["attempt", "server"]


def test_an_error_below_the_root_brings_it_too(rig: Rig) -> None:
    """An item of a batch, or an attempt that was made good for, is worth a look."""
    root = rig.root()
    item = root.child("item")
    item.set_status(StatusCode.ERROR)
    item.end()
    root.end()
    assert rig.names == ["item", "server"]


def test_a_caller_s_mistake_is_an_error_of_the_request(rig: Rig) -> None:
    """A code such as INVALID_ARGUMENT counts, though conventions leave the span's status unset."""
    root = rig.root()
    root.set_attribute("rpc.grpc.status_code", 3)
    root.end()
    assert rig.names == ["server"]


def test_the_context_that_goes_on_says_not_sampled(rig: Rig) -> None:
    """Other services are not told to sample what may be forgotten."""
    with trace.use_span(rig.root()):
        item = telemetry.inject()
        headers = dict(telemetry.trace_headers())
    assert item is not None
    assert headers["traceparent"] == item.traceparent
    assert not int(item.traceparent[-2:], 16) & 1


def test_the_remote_parent_is_kept(rig: Rig) -> None:
    """What is exported stands below the caller's span, in the caller's trace."""
    parent = SpanContext(TRACE, 77, is_remote=True)
    root = rig.root(parent)
    root.set_status(StatusCode.ERROR)
    root.end()
    (span,) = rig.exporter.get_finished_spans()
    assert span.parent == parent
    assert span.context.trace_id == TRACE


def test_a_span_helper_notes_below_what_is_noted(rig: Rig) -> None:
    """`begin_span` makes a note in an unsampled trace; elsewhere it asks the tracer."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    root = rig.root()
    with trace.use_span(root):
        noted = telemetry.begin_span(tracer, "attempt")
    assert isinstance(noted, LateSpan)
    assert noted.parent == root.get_span_context()
    assert not isinstance(telemetry.begin_span(tracer, "attempt"), LateSpan)


def test_an_exception_s_text_is_not_noted(rig: Rig) -> None:
    """Its type is; the text may hold what must not leave."""
    root = rig.root()
    root.record_exception(ValueError("patient 17"))
    root.set_status(StatusCode.ERROR)
    root.end()
    (span,) = rig.exporter.get_finished_spans()
    assert [dict(event.attributes or {}) for event in span.events] == [
        {"exception.type": "ValueError"}
    ]


def test_a_child_that_outlives_its_root_follows_its_fate(rig: Rig) -> None:
    """A background span of a kept trace is exported when it ends; of a forgotten one, not."""
    for fails in (True, False):
        rig.exporter.clear()
        root = rig.root()
        late = root.child("late")
        if fails:
            root.set_status(StatusCode.ERROR)
        root.end()
        late.end()
        assert rig.names == (["server", "late"] if fails else [])


def test_memory_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit children are let go and the root is not."""
    monkeypatch.setattr(late_sampling, "MAX_SPANS", 3)
    root = rig.root()
    for _ in range(10):
        root.child("child").end()
    assert len(root.ended) == 3
    root.set_status(StatusCode.ERROR)
    root.end()
    assert rig.names == ["child"] * 3 + ["server"]
    assert root.ended == []


def test_an_outage_does_not_flood_the_collector() -> None:
    """Above the rate, failed traces are let go until the next second."""
    now = [0.0]
    rig = Rig(per_s=2, clock=lambda: now[0])
    for _ in range(5):
        rig.request(fails=True)
    assert rig.names.count("server") == 2
    now[0] = 1.0
    rig.request(fails=True)
    assert rig.names.count("server") == 3
