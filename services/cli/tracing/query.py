"""Asks a running collector for its traces."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from services.cli.tracing.spans import Span

_TIMEOUT_S = 5.0


class TracesGoneError(Exception):
    """The collector does not answer."""


class Traces:
    """The traces of a collector at `url`, such as http://127.0.0.1:7083."""

    def __init__(self, url: str) -> None:
        self._url = url

    def newest(self, count: int, attribute: str = "") -> list[str]:
        """Ids of the newest traces with a span that has an attribute, the newest first."""
        found: list[str] = self._get(f"/traces?limit={count}&attribute={attribute}")["traces"]
        return found

    def spans(self, trace_id: str) -> list[Span]:
        """The spans of a trace; empty if it is not known."""
        if len(trace_id) != 32 or not trace_id.isalnum():
            return []
        found = self._get(f"/traces/{trace_id}")["spans"]
        return [Span(**{**span, "links": tuple(span["links"])}) for span in found]

    def _get(self, path: str) -> Any:
        try:
            # The launcher wrote the address; it is http on 127.0.0.1.
            with urlopen(f"{self._url}{path}", timeout=_TIMEOUT_S) as reply:  # noqa: S310
                return json.load(reply)
        except (URLError, TimeoutError, ValueError) as error:
            raise TracesGoneError(f"{self._url}{path}: {error}") from error
