"""Sampling by how a request ended: what the ratio lets go is kept if it failed.

The ratio decides at the start of a trace, when nobody knows how it will end. What it lets go costs
no spans: a `LateSpan` only notes name, times and attributes, and holds its children. When the
local root ends (the server's span, in a service) and something in it failed, fell back or was
refused by a rule, the notes become spans and are exported; else they are forgotten.

Such a note costs 2 us of CPU, and nearly all of them are forgotten.

What it can't do: bring back spans of *other* services, or of libraries in this one. They see an
unsampled trace context, and each service decides alone, by how its own part ended. So a trace kept
here has this process's own spans, and of others only the parts that failed there too; a parent
that was not kept is then missing from it. Whoever needs whole traces samples them, or runs a
collector with tail sampling and OTEL_TRACES_SAMPLER=always_on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags
from prometheus_client import Counter

from services.chassis.light_spans import LightSpan
from twinpath import telemetry as names

TRACES = Counter(
    "twinpath_late_traces_total",
    "Local traces that the ratio let go and that failed: exported, or let go for the rate's sake.",
    ("what",),
)
_KEPT, _OVER_RATE = TRACES.labels("exported"), TRACES.labels("over_rate")
_SCOPE = InstrumentationScope(__name__)
_CODE = "rpc.grpc.status_code"

MAX_SPANS = 256  # of one local trace; a decision has about twenty
MAX_PER_S = 100  # local traces exported; an outage must not bring the collector down


class LateExport:
    """Exports the local traces that failed, at a bounded rate.

    Args:
        export: Takes a span that has ended; it is marked as sampled.
        resource: Whose spans they are.
        new_id: Makes span ids.
        per_s: Local traces that are exported in a second at most.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        export: Callable[[ReadableSpan], None],
        resource: Resource,
        new_id: Callable[[], int],
        *,
        per_s: int = MAX_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._export = export
        self._resource = resource
        self.new_id = new_id
        self._per_s = per_s
        self._clock = clock
        self._second = -1
        self._exported = 0

    def root(self, name: str, trace_id: int, parent: SpanContext | None) -> LateSpan:
        """Begin the local root of a trace that is not sampled."""
        return LateSpan(self, name, SpanKind.SERVER, trace_id, parent, None)

    def keeps(self) -> bool:
        """Tell whether one more local trace may be exported in this second."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._exported = second, 0
        self._exported += 1
        within = self._exported <= self._per_s
        (_KEPT if within else _OVER_RATE).inc()
        return within

    def export(self, span: LateSpan) -> None:
        """Export one span that has ended."""
        own = span.get_span_context()
        self._export(
            ReadableSpan(
                name=span.name,
                context=_sampled(own),
                parent=span.parent,
                resource=self._resource,
                attributes=span.attributes,
                events=span.events,
                kind=span.kind,
                status=span.status,
                start_time=span.start_time,
                end_time=span.end_time,
                instrumentation_scope=_SCOPE,
            )
        )


class LateSpan(LightSpan):
    """A span of an unsampled trace, noted down in case that it will be wanted."""

    def __init__(
        self,
        late: LateExport,
        name: str,
        kind: SpanKind,
        trace_id: int,
        parent: SpanContext | None,
        root: LateSpan | None,
    ) -> None:
        state = parent.trace_state if parent is not None else None
        own = SpanContext(trace_id, late.new_id(), is_remote=False, trace_state=state)
        super().__init__(name, own, parent, kind)
        self._late = late
        self._root = root if root is not None else self
        self.ended: list[LateSpan] = []  # of the root: the children that ended
        self.kept = False

    def child(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> LateSpan:
        """Begin a span below this one."""
        return LateSpan(self._late, name, kind, self.context.trace_id, self.context, self._root)

    def end(self, end_time: int | None = None) -> None:
        """End the span; with the root, decide."""
        if self.end_time:
            return
        super().end(end_time)
        root = self._root
        if root is not self:
            if not root.end_time:
                if len(root.ended) < MAX_SPANS:
                    root.ended.append(self)
            elif root.kept:  # it outlived its root
                self._late.export(self)
            return
        ended, self.ended = self.ended, []
        if (self.matters() or any(span.matters() for span in ended)) and self._late.keeps():
            self.kept = True
            for span in ended:
                self._late.export(span)
            self._late.export(self)

    def matters(self) -> bool:
        """Tell whether something failed here, fell back, or was refused by a rule."""
        found = self.attributes
        return bool(
            self.status.status_code is StatusCode.ERROR
            or found.get(names.FALLBACK)
            or found.get(names.REFUSED_RULE)
            or (self.kind is SpanKind.SERVER and found.get(_CODE))
        )


def _sampled(was: SpanContext) -> SpanContext:
    """Return the context with the flag that exporters look at."""
    return SpanContext(
        was.trace_id,
        was.span_id,
        is_remote=False,
        trace_flags=TraceFlags(was.trace_flags | TraceFlags.SAMPLED),
        trace_state=was.trace_state,
    )
