"""What is exported of traces that the ratio let go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from services.chassis import late_sampling, telemetry
from services.chassis.late_sampling import LateExport, LateSampler
from twinpath import telemetry as names


class Rig:
    """A tracer provider as a service has it, with an exporter that can be read."""

    def __init__(self, sampler: object, **settings: object) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=LateSampler(sampler), shutdown_on_exit=False)  # type: ignore[arg-type]
        direct = SimpleSpanProcessor(self.exporter)
        self.late = LateExport(direct.on_end, **settings)  # type: ignore[arg-type]
        self.provider.add_span_processor(direct)
        self.provider.add_span_processor(self.late)
        self.tracer: Tracer = self.provider.get_tracer("test")

    @property
    def names(self) -> list[str]:
        """Names of what was exported."""
        return [span.name for span in self.exporter.get_finished_spans()]

    def request(self, mark: str = "", value: object = None, *, fails: bool = False) -> None:
        """A server span with a child that may carry a mark."""
        with self.tracer.start_as_current_span("server", kind=SpanKind.SERVER) as root:
            with self.tracer.start_as_current_span("attempt") as child:
                if mark:
                    child.set_attribute(mark, value)  # type: ignore[arg-type]
            if fails:
                root.set_status(StatusCode.ERROR)


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Everything is let go by the ratio."""
    made = Rig(ParentBased(ALWAYS_OFF))
    yield made
    made.provider.shutdown()


def test_a_request_that_went_well_is_forgotten(rig: Rig) -> None:
    """Nothing is exported, and nothing is kept in memory."""
    rig.request()
    rig.request(names.FALLBACK, value=False)
    assert rig.names == []
    assert rig.late.buffered == 0


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
    start = rig.tracer.start_as_current_span
    with start("server"), start("item") as item:
        item.set_status(StatusCode.ERROR)
    assert rig.names == ["item", "server"]


def test_a_caller_s_mistake_is_an_error_of_the_request(rig: Rig) -> None:
    """A code such as INVALID_ARGUMENT counts, though conventions leave the span's status unset."""
    with rig.tracer.start_as_current_span("server", kind=SpanKind.SERVER) as root:
        root.set_attribute("rpc.grpc.status_code", 3)
    assert rig.names == ["server"]


def test_the_context_that_goes_on_says_not_sampled(rig: Rig) -> None:
    """Other services are not told to sample what may be forgotten."""
    with rig.tracer.start_as_current_span("server"):
        item = telemetry.inject()
    assert item is not None
    assert not int(item.traceparent[-2:], 16) & 1


def test_sampled_traces_are_exported_once() -> None:
    """The late export has no part in what the ratio took."""
    rig = Rig(ParentBased(ALWAYS_ON))
    rig.request(fails=True)
    assert rig.names == ["attempt", "server"]


def test_the_parent_s_decision_is_followed(rig: Rig) -> None:
    """A remote parent that is sampled makes the spans sampled; one that is not, late."""
    decided = Rig(ParentBased(TraceIdRatioBased(0.0)))
    for flag, expected in (("01", ["server"]), ("00", [])):
        decided.exporter.clear()
        carrier = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-{flag}"}
        context = trace.set_span_in_context(
            trace.get_current_span(telemetry.propagate.extract(carrier))
        )
        with decided.tracer.start_as_current_span("server", context=context):
            pass
        assert decided.names == expected


def test_client_spans_stay_dropped(rig: Rig) -> None:
    """They cost the most; what failed behind them stands in the span around them."""
    with rig.tracer.start_as_current_span("server") as root:
        with rig.tracer.start_as_current_span("call", kind=SpanKind.CLIENT) as call:
            assert not call.is_recording()
        root.set_status(StatusCode.ERROR)
    assert rig.names == ["server"]


def test_two_requests_at_once_are_decided_apart(rig: Rig) -> None:
    """Of two local traces of one remote trace, only the one that failed is exported."""
    carrier = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}
    context = telemetry.propagate.extract(carrier)
    good = rig.tracer.start_span("good", context=context)
    bad = rig.tracer.start_span("bad", context=context)
    bad.set_status(StatusCode.ERROR)
    bad.end()
    good.end()
    assert rig.names == ["bad"]


def test_a_child_that_outlives_its_root_follows_its_fate(rig: Rig) -> None:
    """A background span of a kept trace is exported when it ends; of a forgotten one, not."""
    for fails in (True, False):
        rig.exporter.clear()
        root = rig.tracer.start_span("server")
        late = rig.tracer.start_span("late", context=trace.set_span_in_context(root))
        if fails:
            root.set_status(StatusCode.ERROR)
        root.end()
        late.end()
        assert rig.names == (["server", "late"] if fails else [])


def test_memory_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limits children are let go and the root is not, and all is freed at the end."""
    monkeypatch.setattr(late_sampling, "MAX_SPANS", 3)
    with rig.tracer.start_as_current_span("server") as root:
        for _ in range(10):
            with rig.tracer.start_as_current_span("child"):
                pass
        assert rig.late.buffered == 3
        root.set_status(StatusCode.ERROR)
    assert rig.names == ["child"] * 3 + ["server"]
    assert rig.late.buffered == 0


def test_spans_that_never_end_don_t_stop_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest open traces are given up for new ones, with all that was kept of them."""
    monkeypatch.setattr(late_sampling, "MAX_BUFFERED", 4)
    for _ in range(10):
        lost = rig.tracer.start_span("never ends")
        rig.tracer.start_span("child", context=trace.set_span_in_context(lost)).end()
    assert rig.late.buffered <= 4
    rig.request(fails=True)
    assert rig.names == ["attempt", "server"]


def test_an_outage_does_not_flood_the_collector() -> None:
    """Above the rate, failed traces are let go until the next second."""
    now = [0.0]
    rig = Rig(ALWAYS_OFF, per_s=2, clock=lambda: now[0])
    for _ in range(5):
        rig.request(fails=True)
    assert rig.names.count("server") == 2
    now[0] = 1.0
    rig.request(fails=True)
    assert rig.names.count("server") == 3
