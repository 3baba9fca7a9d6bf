"""The stand-in's message batches, as Anthropic offers them: requests in, a file of results out.

A batch is worked on when it is looked at: after `batch_looks` looks it has ended. One that is
canceled ends one look later. All of it is in memory, like the stand-in's other state.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import Field

from services.standin.anthropic_wire import Messages
from services.standin.engine import UnknownModelError
from services.standin.faults import Fault
from services.standin.oip import BadRequestError
from services.standin.wire import Form, read

PREFIX = "/v1/messages/batches"
_RESULTS = ("canceled", "errored", "expired", "succeeded")
_DAY = dt.timedelta(days=1)
_PAGE = 20


class _Request(Form):
    custom_id: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    params: dict[str, Any]


class _BatchForm(Form):
    requests: list[_Request] = Field(min_length=1, max_length=100_000)


@dataclass(slots=True)
class _Batch:
    requests: list[_Request]
    id: str
    created: dt.datetime
    status: str = "in_progress"
    looks: int = 0
    canceled: dt.datetime | None = None
    ended: dt.datetime | None = None
    results: list[dict[str, Any]] = field(default_factory=list)


class MessageBatches:
    """Message batches of one stand-in.

    Args:
        looks: After so many looks a batch has ended.
        fault: Tells the fault in force for a model.
    """

    def __init__(self, looks: int, fault: Callable[[web.Request, str], Fault | None]) -> None:
        self._looks = looks
        self._fault = fault
        self._wire = Messages()
        self._batches: dict[str, _Batch] = {}

    def routes(self, allowed: Callable[[Handler], Handler]) -> Iterable[web.RouteDef]:
        """Return the routes, each behind the check of the token."""
        return [
            web.post(PREFIX, allowed(self._create)),
            web.get(PREFIX, allowed(self._list)),
            web.get(f"{PREFIX}/{{id}}", allowed(self._look)),
            web.get(f"{PREFIX}/{{id}}/results", allowed(self._results)),
            web.post(f"{PREFIX}/{{id}}/cancel", allowed(self._cancel)),
            web.delete(f"{PREFIX}/{{id}}", allowed(self._delete)),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        self._wire.check_version(request)
        form = read(_BatchForm, await request.read())
        names = [one.custom_id for one in form.requests]
        if len(set(names)) != len(names):
            raise BadRequestError("requests: two have the same custom_id")
        if any(one.params.get("stream") for one in form.requests):
            raise BadRequestError("requests: a batch does not stream")
        batch = _Batch(form.requests, f"msgbatch_{secrets.token_hex(8)}", dt.datetime.now(dt.UTC))
        self._batches[batch.id] = batch
        return web.json_response(_document(request, batch))

    async def _list(self, request: web.Request) -> web.Response:
        self._wire.check_version(request)
        limit = int(request.query.get("limit", _PAGE))
        newest = list(self._batches.values())[::-1]
        after = request.query.get("after_id")
        if after is not None:
            places = [place for place, one in enumerate(newest) if one.id == after]
            newest = newest[places[0] + 1 :] if places else []
        page = [_document(request, batch) for batch in newest[:limit]]
        return web.json_response(
            {"data": page, "has_more": len(newest) > limit,
             "first_id": page[0]["id"] if page else None,
             "last_id": page[-1]["id"] if page else None}
        )  # fmt: skip

    async def _look(self, request: web.Request) -> web.Response:
        batch = self._find(request)
        batch.looks += 1
        if batch.status == "canceling" or (
            batch.status == "in_progress" and batch.looks >= self._looks
        ):
            self._work(request, batch)
        return web.json_response(_document(request, batch))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._find(request)
        if batch.status == "ended":
            raise BadRequestError("the batch has ended")
        if batch.status == "in_progress":
            batch.status, batch.canceled = "canceling", dt.datetime.now(dt.UTC)
        return web.json_response(_document(request, batch))

    async def _delete(self, request: web.Request) -> web.Response:
        batch = self._find(request)
        if batch.status != "ended":
            raise BadRequestError("the batch has not ended; cancel it first")
        del self._batches[batch.id]
        return web.json_response({"id": batch.id, "type": "message_batch_deleted"})

    async def _results(self, request: web.Request) -> web.Response:
        batch = self._find(request)
        if batch.status != "ended":
            raise web.HTTPNotFound(text="the batch has not ended")
        lines = "".join(f"{json.dumps(line)}\n" for line in batch.results)
        return web.Response(body=lines.encode(), content_type="application/x-jsonl")

    def _find(self, request: web.Request) -> _Batch:
        self._wire.check_version(request)
        batch = self._batches.get(request.match_info["id"])
        if batch is None:
            raise web.HTTPNotFound(text="no such batch")
        return batch

    def _work(self, request: web.Request, batch: _Batch) -> None:
        """Answer all requests, the last one first: `custom_id` is what counts."""
        for one in reversed(batch.requests):
            result = {"type": "canceled"}
            if batch.status != "canceling":
                result = self._answered(request, one)
            batch.results.append({"custom_id": one.custom_id, "result": result})
        batch.status, batch.ended = "ended", dt.datetime.now(dt.UTC)

    def _answered(self, request: web.Request, one: _Request) -> dict[str, Any]:
        fault = self._fault(request, str(one.params.get("model", "")))
        if fault is not None and fault.kind == "hang":
            return {"type": "expired"}  # never answered
        if fault is not None and fault.kind == "error":
            return self._errored(fault.status, fault.message, fault)
        try:
            said = self._wire.answer(request, json.dumps(one.params).encode(), fault)
        except BadRequestError as error:
            return self._errored(400, str(error), None)
        except UnknownModelError as error:
            return self._errored(404, str(error), None)
        return {"type": "succeeded", "message": said.document}

    def _errored(self, status: int, message: str, fault: Fault | None) -> dict[str, Any]:
        return {"type": "errored", "error": self._wire.error(status, message, fault)}


def _document(request: web.Request, batch: _Batch) -> dict[str, Any]:
    counts = Counter(line["result"]["type"] for line in batch.results)
    url = f"{request.url.origin()}{PREFIX}/{batch.id}/results"
    return {
        "id": batch.id, "type": "message_batch", "processing_status": batch.status,
        "request_counts": {"processing": len(batch.requests) - len(batch.results),
                           **{name: counts[name] for name in _RESULTS}},
        "created_at": batch.created.isoformat(), "expires_at": (batch.created + _DAY).isoformat(),
        "ended_at": _iso(batch.ended), "cancel_initiated_at": _iso(batch.canceled),
        "archived_at": None, "results_url": url if batch.status == "ended" else None,
    }  # fmt: skip


def _iso(time: dt.datetime | None) -> str | None:
    return None if time is None else time.isoformat()
