"""Spans of OpenTelemetry's API that cost a quarter of its SDK's, for the same provider.

A sampled decision makes eighteen spans. The SDK takes 20 to 40 us of CPU for each before it is
exported: a lock, bounded and cleaned copies of its attributes, a second object when it ends. These
here are written by one thread, with attributes of our own and of instrumentations, which are few
and of simple kinds, so that they can be kept as they come.

A span may stand in several traces: one call that serves two sampled decisions belongs to both, and
so does all that happens below it, in other services too (`share`). Only the trace's id differs in
the copies, because a span's id need be unique within its trace alone.

What asks the global provider for a tracer gets these, instrumentations too. Sampler, resource, ids
and processors are the SDK's; a processor hears of spans when they end, not when they begin.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.util._decorator import _agnosticcontextmanager

_UNSET = Status(StatusCode.UNSET)
_SHARED = contexts.create_key("twinpath-shared-traces")


class LightSpan(Span):
    """What is noted of one span. It looks to exporters as the SDK's own `ReadableSpan`."""

    resource: Resource
    instrumentation_scope: InstrumentationScope
    dropped_attributes = dropped_events = dropped_links = 0

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        links: Sequence[Link] = (),
    ) -> None:
        self.name = name
        self.context = context
        self.parent = parent
        self.kind = kind
        self.links = links
        self.attributes: dict[str, Any] = {}
        self.events: list[Event] = []
        self.status = _UNSET
        self.start_time = time.time_ns()
        self.end_time = 0

    def get_span_context(self) -> SpanContext:
        """Return the ids."""
        return self.context

    def is_recording(self) -> bool:
        """Say yes until it has ended: attributes and errors count."""
        return not self.end_time

    def set_attribute(self, key: str, value: Any) -> None:
        """Note an attribute."""
        if not self.end_time:
            self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Note some attributes."""
        if not self.end_time:
            self.attributes.update(attributes)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Note an event."""
        self.events.append(Event(name, attributes, timestamp))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Note that an exception came: its type; its text may hold what must not leave."""
        del attributes, escaped
        self.add_event("exception", {"exception.type": type(exception).__name__}, timestamp)

    def set_status(self, status: Any, description: str | None = None) -> None:
        """Note how it went. What was said to be well stays so."""
        if self.status.status_code is not StatusCode.OK:
            self.status = (
                status if isinstance(status, Status) else Status(status, description=description)
            )

    def update_name(self, name: str) -> None:
        """Name the span anew."""
        self.name = name

    def end(self, end_time: int | None = None) -> None:
        """Note when it ended."""
        self.end_time = self.end_time or end_time or time.time_ns()


class _Recorded(LightSpan):
    """A span of a sampled trace. `elsewhere` are its parents in other traces that it is in."""

    def __init__(self, tracer: LightTracer, *noted: Any) -> None:
        super().__init__(*noted)
        self._tracer = tracer
        self.elsewhere: Sequence[SpanContext] = ()

    @property
    def resource(self) -> Resource:  # type: ignore[override]
        """Whose span it is."""
        return self._tracer.provider.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:  # type: ignore[override]
        """What made it."""
        return self._tracer.scope

    def end(self, end_time: int | None = None) -> None:
        """End the span, once, and hand it to the processors."""
        if not self.end_time:
            super().end(end_time)
            self._tracer.ended(self)
            for parent in self.elsewhere:
                self._tracer.ended(self._below(parent))

    def _below(self, parent: SpanContext) -> LightSpan:
        """Return this span as it stands below another parent, in that one's trace."""
        found = _Recorded.__new__(_Recorded)
        found.__dict__.update(self.__dict__)
        found.context, found.parent = _in_trace(self.context, parent.trace_id), parent
        found.links = [
            Link(self.context) if link.context.trace_id == parent.trace_id else link
            for link in self.links
        ]
        return found


def _in_trace(context: SpanContext, trace_id: int) -> SpanContext:
    return SpanContext(
        trace_id, context.span_id, context.is_remote, context.trace_flags, context.trace_state
    )


def share(span: Span, parents: Iterable[SpanContext]) -> None:
    """Have a span that has just begun stand below parents of other traces as well.

    From here on the current context says so, and what begins in it stands in these traces too.
    """
    own = span.get_span_context().trace_id
    others = {parent.trace_id: parent for parent in parents if parent.trace_id != own}
    if others and isinstance(span, _Recorded):
        span.elsewhere = tuple(others.values())
        contexts.attach(with_shared(tuple(others)))


def with_shared(trace_ids: Sequence[int], context: Context | None = None) -> Context:
    """Return a context in which spans stand in these traces too."""
    return contexts.set_value(_SHARED, trace_ids, context)


def shared(context: Context | None = None) -> Sequence[int]:
    """Return the other traces that spans of a context stand in."""
    found: Any = contexts.get_value(_SHARED, context)
    return found or ()


class LightTracer(trace.Tracer):
    """Begins spans for one scope."""

    def __init__(self, provider: LightProvider, scope: InstrumentationScope) -> None:
        self.provider = provider
        self.scope = scope
        self.ended: Any = provider.processor.on_end

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        """Begin a span, if the sampler takes it."""
        del record_exception, set_status_on_exception  # matter where a span is current
        ids = self.provider.id_generator
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is None or not parent.is_valid:
            parent = None
            trace_id, random = ids.generate_trace_id(), ids.is_trace_id_random()
        else:
            trace_id, random = parent.trace_id, parent.trace_flags.random_trace_id
        found = self.provider.sampler.should_sample(
            context, trace_id, name, kind, attributes, links
        )
        flags = TraceFlags.SAMPLED if found.decision.is_sampled() else TraceFlags.DEFAULT
        flags |= TraceFlags.RANDOM_TRACE_ID if random else 0
        own = SpanContext(
            trace_id, ids.generate_span_id(), False, TraceFlags(flags), found.trace_state
        )
        if not found.decision.is_recording():
            return NonRecordingSpan(own)
        span = _Recorded(self, name, own, parent, kind, links or ())
        if found.attributes:
            span.attributes.update(found.attributes)
        if start_time is not None:
            span.start_time = start_time
        others = shared(context)
        if others and parent is not None:
            span.elsewhere = [_in_trace(parent, other) for other in others]
        return span

    @_agnosticcontextmanager
    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[Span]:
        """Begin a span and have it current for a while."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span


class LightProvider(TracerProvider):
    """The SDK's provider, whose tracers make light spans."""

    @property
    def processor(self) -> Any:
        """What hears of spans that have ended."""
        return self._active_span_processor

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace.Tracer:
        """Return the tracer of a module."""
        made = super().get_tracer(
            instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        )
        scope = getattr(made, "_instrumentation_scope", None)
        return made if scope is None else LightTracer(self, scope)  # else tracing is disabled
