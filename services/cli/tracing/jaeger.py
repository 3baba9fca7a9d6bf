"""Asks a Jaeger for its traces, in the words of the built-in collector."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from services.cli.tracing.query import TracesGoneError
from services.cli.tracing.spans import Attribute, Span

_TIMEOUT_S = 5.0
_NOT_FOUND = 404
_ROUTER = "twinpath-router"
_LOOKED_AT = 50  # Jaeger's own search wants an attribute's value, too; so we look ourselves
# Jaeger's own tags beside the attributes.
_KIND, _STATUS, _MESSAGE = "span.kind", "otel.status_code", "otel.status_description"
_INSTANCE = "service.instance.id"


class JaegerTraces:
    """The traces of a Jaeger whose query API is at `url`, such as http://127.0.0.1:16686."""

    def __init__(self, url: str) -> None:
        self._url = url

    def newest(self, count: int, attribute: str = "") -> list[str]:
        """Ids of the newest traces through the router, the newest first.

        Args:
            count: At most so many.
            attribute: Only traces with a span that has it.
        """
        query = urlencode({"service": _ROUTER, "limit": _LOOKED_AT + count, "lookback": "1h"})
        traces = self._get(f"/api/traces?{query}")["data"] or []
        chosen = [trace for trace in traces if not attribute or _has(trace, attribute)]
        chosen.sort(key=lambda trace: max(s["startTime"] for s in trace["spans"]), reverse=True)
        return [trace["traceID"].rjust(32, "0") for trace in chosen[:count]]

    def spans(self, trace_id: str) -> list[Span]:
        """The spans of a trace; empty if it is not known."""
        if len(trace_id) != 32 or not trace_id.isalnum():
            return []
        found = self._get(f"/api/traces/{trace_id}", {"data": []})["data"] or []
        return [span for trace in found for span in _spans(trace)]

    def _get(self, path: str, missing: Any = None) -> Any:
        try:
            # The launcher wrote the address; it is http on 127.0.0.1.
            with urlopen(f"{self._url}{path}", timeout=_TIMEOUT_S) as reply:  # noqa: S310
                return json.load(reply)
        except HTTPError as error:
            if error.code == _NOT_FOUND and missing is not None:
                return missing
            raise TracesGoneError(f"{self._url}{path}: {error}") from error
        except (URLError, TimeoutError, ValueError) as error:
            raise TracesGoneError(f"{self._url}{path}: {error}") from error


def _has(trace: Mapping[str, Any], attribute: str) -> bool:
    return any(tag["key"] == attribute for span in trace["spans"] for tag in span["tags"])


def _spans(trace: Mapping[str, Any]) -> Iterator[Span]:
    processes = trace["processes"]
    for span in trace["spans"]:
        process = processes[span["processID"]]
        tags = _attributes(span["tags"])
        parents, links = _references(span)
        yield Span(
            trace_id=span["traceID"].rjust(32, "0"),
            span_id=span["spanID"].rjust(16, "0"),
            parent_id=parents,
            service=process["serviceName"],
            name=span["operationName"],
            kind=str(tags.pop(_KIND, "internal")).upper(),
            start_ns=span["startTime"] * 1000,
            end_ns=(span["startTime"] + span["duration"]) * 1000,
            error=tags.pop(_STATUS, "") == "ERROR",
            message=str(tags.pop(_MESSAGE, "")),
            attributes=tags,
            links=links,
            process=str(_attributes(process.get("tags", ())).get(_INSTANCE, "")),
        )


def _references(span: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the parent's id, and the trace ids of the links: Jaeger has one list for both."""
    parent, links = "", []
    for reference in span.get("references", ()):
        if reference["refType"] == "CHILD_OF" and not parent:
            parent = reference["spanID"].rjust(16, "0")
        else:
            links.append(reference["traceID"].rjust(32, "0"))
    return parent, tuple(links)


def _attributes(tags: Iterable[Mapping[str, Any]]) -> dict[str, Attribute]:
    return {tag["key"]: tag["value"] for tag in tags}
