"""Spans as the collector keeps them, and the bounded store that holds them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

Attribute = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
        parent_id: 16 hex digits; empty for a root.
        service: The resource's `service.name`.
        name: The span's name.
        kind: SERVER, CLIENT, INTERNAL, PRODUCER or CONSUMER.
        start_ns: Nanoseconds since 1970-01-01 UTC.
        end_ns: The same.
        error: Its status is ERROR.
        message: The status's text.
        attributes: Those of simple kinds.
        links: Trace ids that it links to.
        process: The process that sent it: `service.instance.id`, or empty.
    """

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    error: bool = False
    message: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    process: str = ""

    @property
    def duration_us(self) -> float:
        """How long it took, in microseconds."""
        return (self.end_ns - self.start_ns) / 1000


class SpanStore:
    """Keeps spans by trace; when there are too many the trace that is oldest goes as a whole.

    Safe to use from several threads. A span that arrives twice is kept once.

    Args:
        limit: Spans kept at most.
    """

    def __init__(self, limit: int = 50_000) -> None:
        if limit < 1:
            raise ValueError("the limit must be at least one span")
        self._limit = limit
        self._traces: OrderedDict[str, dict[str, Span]] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()
        self.dropped = 0

    def add(self, spans: Iterable[Span]) -> None:
        """Keep spans."""
        with self._lock:
            for span in spans:
                trace = self._traces.setdefault(span.trace_id, {})
                self._count += span.span_id not in trace
                trace[span.span_id] = span
            while self._count > self._limit:
                _, oldest = self._traces.popitem(last=False)
                self._count -= len(oldest)
                self.dropped += len(oldest)

    def trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace in the order of their start; empty if it is not known."""
        with self._lock:
            spans = list(self._traces.get(trace_id.lower(), {}).values())
        return sorted(spans, key=lambda span: (span.start_ns, span.span_id))

    def newest(self, count: int, attribute: str = "") -> list[str]:
        """Ids of the newest traces, the newest first.

        Args:
            count: At most so many.
            attribute: Only traces in which a span has this attribute; empty: all.
        """
        with self._lock:
            fitting = (
                trace_id
                for trace_id, spans in reversed(self._traces.items())
                if not attribute or any(attribute in span.attributes for span in spans.values())
            )
            return list(islice(fitting, count))

    def __len__(self) -> int:
        """How many spans are kept."""
        with self._lock:
            return self._count
