"""Message batches as Anthropic offers them: what is written and what is read. No I/O.

A batch takes its requests along and carries no mark of ours but their names, which come back with
its answers. So one whose making was cut off is known for certain only once it has ended; and it
can't be made anew, because nothing here keeps its requests.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from services.remote.bulk_wire import Missing, Page, Requests, Seen, State, Suspect, by_custom_id
from services.remote.wire import JSON_TYPE, AnswerError, Body, Reply, count, dig, load_object

_RENDERER = "anthropic-batch/1"
_PAGE = 100
_CLOCKS_APART_S = 120.0
_COUNTS = ("canceled", "errored", "expired", "processing", "succeeded")
# The status that a single request would have met, by the error's type.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicBatches:
    """See `BatchApi`.

    Args:
        headers: What every request has: the protocol's version.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)

    def upload(self, requests: Requests, base_path: str) -> None:
        """See `BatchApi`."""
        del requests, base_path

    def create(self, job: str, requests: Requests, file: str, endpoint: str) -> Body:
        """See `BatchApi`."""
        del job, file, endpoint
        parts = [
            b'{"custom_id":%b,"params":%b}' % (json.dumps(name).encode(), body.content)
            for name, body in requests
        ]
        headers = self._headers | {"Content-Type": JSON_TYPE}
        content = b'{"requests":[%b]}' % b",".join(parts)
        return Body(content, headers, _RENDERER, "/messages/batches")

    def look(self, batch: str) -> Body:
        """See `BatchApi`."""
        return self._get(f"/messages/batches/{quote(batch, safe='')}")

    def cancel(self, batch: str) -> Body:
        """See `BatchApi`."""
        path = f"/messages/batches/{quote(batch, safe='')}/cancel"
        return Body(b"", self._headers, _RENDERER, path)

    def newest(self, after: str = "") -> Body:
        """See `BatchApi`."""
        more = f"&after_id={quote(after, safe='')}" if after else ""
        return self._get(f"/messages/batches?limit={_PAGE}{more}")

    def page(self, content: bytes, job: str, requests: int, since: float) -> Page:
        """See `BatchApi`."""
        del job
        document = load_object(content)
        suspects: list[Suspect] = []
        data = dig(document, "data", kind=list)
        for one in data:
            if _time(dig(one, "created_at", kind=str)) < since - _CLOCKS_APART_S:
                return Page(suspects, "")  # the newest come first
            counts = dig(one, "request_counts", kind=dict)
            if sum(count(counts, name) for name in _COUNTS) == requests:
                batch, seen = dig(one, "id", kind=str), self._seen(one)
                suspects.append(Suspect(batch, fetch=seen.fetch[0] if seen.fetch else None))
        last = dig(data[-1], "id", kind=str) if data and document.get("has_more") else ""
        return Page(suspects, last)

    def seen(self, content: bytes) -> Seen:
        """See `BatchApi`."""
        return self._seen(load_object(content))

    def _seen(self, document: dict[str, Any]) -> Seen:
        if dig(document, "processing_status", kind=str) != "ended":
            return Seen(State.RUNNING)
        batch = quote(dig(document, "id", kind=str), safe="")
        return Seen(State.ENDED, [self._get(f"/messages/batches/{batch}/results")])

    def erase(self, content: bytes, file: str) -> Sequence[Body]:
        """See `BatchApi`. Both are the batch's own, so the batch itself is deleted."""
        del file
        if not content:
            return ()
        batch = quote(dig(load_object(content), "id", kind=str), safe="")
        path = f"/messages/batches/{batch}"
        return [Body(b"", self._headers, _RENDERER, path, "DELETE")]

    def answers(self, content: bytes) -> Mapping[str, Reply | Missing | None]:
        """See `BatchApi`."""
        return by_custom_id(content, lambda line: _answer(dig(line, "result", kind=dict)))

    def _get(self, path: str) -> Body:
        return Body(b"", self._headers, _RENDERER, path, "GET")


def _answer(result: dict[str, Any]) -> Reply | Missing:
    match dig(result, "type", kind=str):
        case "succeeded":
            return _reply(200, dig(result, "message", kind=dict))
        case "errored":
            error = dig(result, "error", kind=dict)
            kind = dig(error, "error", "type", kind=str)
            return _reply(_STATUS.get(kind, 500), error)
        case "canceled":
            return Missing.CANCELLED
        case "expired":
            return Missing.EXPIRED
    raise AnswerError("result")


def _reply(status: int, document: dict[str, Any]) -> Reply:
    return Reply(status, {}, JSON_TYPE, json.dumps(document).encode())


def _time(text: str) -> float:
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise AnswerError("created_at") from None
