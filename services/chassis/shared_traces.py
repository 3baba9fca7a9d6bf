"""Tells the next service which traces a call belongs to besides its own.

W3C's traceparent names one trace. A call that serves several sampled decisions names the others in
a header of ours, and the spans that it causes stand in all of them (light_spans.py).
"""

from __future__ import annotations

import re
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagators import textmap

from services.chassis.light_spans import shared, with_shared

HEADER = "twinpath-shared-traces"
_IDS = re.compile(r"[0-9a-f]{32}(,[0-9a-f]{32}){0,127}")  # a batch has no more items


class SharedTraces(textmap.TextMapPropagator):
    """Carries the ids in one header: 32 hex digits each, with commas between."""

    def extract(
        self,
        carrier: Any,
        context: Context | None = None,
        getter: textmap.Getter[Any] = textmap.default_getter,
    ) -> Context:
        """Return the context with the ids; anything but ids is ignored."""
        context = Context() if context is None else context
        for sent in getter.get(carrier, HEADER) or ():
            if _IDS.fullmatch(sent):
                return with_shared([int(part, 16) for part in sent.split(",")], context)
        return context

    def inject(
        self,
        carrier: Any,
        context: Context | None = None,
        setter: textmap.Setter[Any] = textmap.default_setter,
    ) -> None:
        """Write the header; none where there are no other traces."""
        others = shared(context)
        if others:
            setter.set(carrier, HEADER, ",".join(f"{other:032x}" for other in others))

    @property
    def fields(self) -> set[str]:
        """The header's name."""
        return {HEADER}
