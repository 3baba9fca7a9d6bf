"""Traces that the sampler let go, but that turned out to matter: errors, fallbacks, refusals.

The ratio decides at the start of a trace, when nobody knows how it will end. So what it lets go
is recorded all the same, kept in this process until the local root span ends (the server span,
in a service), and then either forgotten or exported:

    LateSampler    turns "drop" into "record, but don't export", for server spans and our own
    LateExport     keeps those spans, and decides at the end

Client spans of unsampled traces stay dropped: they are the most, they cost the most, and what
failed behind them stands in the span around them. A span costs about 20 us of CPU.

What it can't do: bring back spans of *other* services. They see an unsampled trace context, and
each decides alone, by how its own part ended. So a trace kept here has this process's spans,
and of others only the parts that failed there too; a parent that was not kept is then missing
from it. Whoever needs whole traces samples them, or runs a collector
with tail sampling and OTEL_TRACES_SAMPLER=always_on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from prometheus_client import Counter

from twinpath import telemetry as names

TRACES = Counter(
    "twinpath_late_traces_total",
    "Local traces that the ratio let go and that failed: exported, or let go for the rate's sake.",
    ("what",),
)
_KEPT, _OVER_RATE = TRACES.labels("exported"), TRACES.labels("over_rate")

_BUCKET = "_twinpath_bucket"
MAX_SPANS = 256  # of one local trace; a decision has about twenty
MAX_BUFFERED = 16_384  # of all that are open
MAX_PER_S = 100  # local traces exported; an outage must not bring the collector down


class LateSampler(Sampler):
    """Asks another sampler; what that drops is recorded, and its context says: not sampled.

    Not so client spans; see above.
    """

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See the class."""
        found = self._inner.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if found.decision is not Decision.DROP or kind is SpanKind.CLIENT:
            return found
        # Not `found.attributes`: a result that drops has none.
        return SamplingResult(Decision.RECORD_ONLY, attributes, found.trace_state)

    def get_description(self) -> str:
        """Return the other one's, and that this one stands around it."""
        return f"LateSampler{{{self._inner.get_description()}}}"


class _Bucket:
    """The spans of one local trace that ended before its root."""

    __slots__ = ("_root_id", "spans", "state")

    def __init__(self, root_id: int) -> None:
        self._root_id = root_id
        self.spans: list[ReadableSpan] = []
        self.state = "open"  # then "kept" or "forgotten"

    def is_root(self, span: ReadableSpan) -> bool:
        """Tell whether the local trace ends with this span."""
        return span.context is not None and span.context.span_id == self._root_id


class LateExport(SpanProcessor):
    """Holds the spans of unsampled local traces, and exports those of the ones that failed.

    Args:
        export: Takes a span for export; it is marked as sampled.
        per_s: Local traces that are exported in a second at most.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        export: Callable[[ReadableSpan], None],
        *,
        per_s: int = MAX_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._export = export
        self._per_s = per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[int, _Bucket] = {}  # by span id: on_end gets a copy of the span
        self._buffered = 0
        self._second = -1
        self._exported = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Put a span into its local root's bucket."""
        if span.context.trace_flags.sampled:
            return
        if len(self._open) >= MAX_BUFFERED:
            self._give_up_oldest()
        parent = trace.get_current_span(parent_context)
        bucket = getattr(parent, _BUCKET, None) or _Bucket(span.context.span_id)
        setattr(span, _BUCKET, bucket)
        self._open[span.context.span_id] = bucket

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span until its root ends; with the root, decide."""
        bucket = self._open.pop(span.context.span_id, None) if span.context else None
        if bucket is None:
            return
        if bucket.state == "kept":  # it outlived its root
            self._export(_as_sampled(span))
            return
        if bucket.state == "forgotten":
            return
        is_root = bucket.is_root(span)
        with self._lock:
            room = len(bucket.spans) < MAX_SPANS and self._buffered < MAX_BUFFERED
            if room or is_root:  # without the root the others would be orphans
                bucket.spans.append(span)
                self._buffered += 1
            if not is_root:
                return
            spans, bucket.spans = bucket.spans, []
            self._buffered -= len(spans)
        bucket.state = "kept" if self._matters(spans) else "forgotten"
        if bucket.state == "kept":
            for one in spans:
                self._export(_as_sampled(one))

    def _give_up_oldest(self) -> None:
        """Forget the local trace of the oldest open span: it may never end."""
        with self._lock:
            bucket = self._open.pop(next(iter(self._open)))
            bucket.state = "forgotten"
            self._buffered -= len(bucket.spans)
            bucket.spans = []

    @property
    def buffered(self) -> int:
        """Spans that wait for their root's end."""
        return self._buffered

    def shutdown(self) -> None:
        """Nothing: the exporter is another processor's."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing can be hurried: open traces are not decided."""
        del timeout_millis
        return True

    def _matters(self, spans: Sequence[ReadableSpan]) -> bool:
        if not any(map(_is_marked, spans)):
            return False
        with self._lock:
            second = int(self._clock())
            if second != self._second:
                self._second, self._exported = second, 0
            self._exported += 1
            within = self._exported <= self._per_s
        (_KEPT if within else _OVER_RATE).inc()
        return within


def _is_marked(span: ReadableSpan) -> bool:
    """Tell whether something failed here, fell back, or was refused by a rule."""
    found = span.attributes or {}
    return bool(
        span.status.status_code is StatusCode.ERROR
        or found.get(names.FALLBACK)
        or found.get(names.REFUSED_RULE)
        or (span.kind is SpanKind.SERVER and found.get("rpc.grpc.status_code"))
    )


def _as_sampled(span: ReadableSpan) -> ReadableSpan:
    """Return the span with the flag that exporters look at."""
    assert span.context is not None
    was = span.context
    return ReadableSpan(
        name=span.name,
        context=SpanContext(
            was.trace_id,
            was.span_id,
            is_remote=False,
            trace_flags=TraceFlags(was.trace_flags | TraceFlags.SAMPLED),
            trace_state=was.trace_state,
        ),
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
