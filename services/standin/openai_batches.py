"""The stand-in's files and batches, as OpenAI offers them: a file of requests, a file of answers.

A batch is worked on when it is looked at: after `batch_looks` looks it is complete. All of it is
in memory, like the stand-in's other state.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any, Literal

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import Field

from services.standin.engine import UnknownModelError
from services.standin.faults import Fault
from services.standin.oip import BadRequestError
from services.standin.openai_wire import Chat, Embeddings, Responses
from services.standin.wire import Form, Wire, read

_CREATED = 1_790_000_000
_BY_ENDPOINT: dict[str, Wire] = {wire.path: wire for wire in (Chat(), Responses(), Embeddings())}
_PAGE = 20


class _BatchForm(Form):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)


class _Line(Form):
    custom_id: str = Field(min_length=1)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(slots=True)
class _Batch:
    form: _BatchForm
    id: str
    lines: list[_Line] = field(default_factory=list)
    looks: int = 0
    status: str = "validating"
    problem: str = ""
    output: str = ""
    errors: str = ""
    counts: tuple[int, int] = (0, 0)


class Batches:
    """Files and batches of one stand-in.

    Args:
        looks: After so many looks a batch is complete.
        fault: Tells the fault in force for a model.
    """

    def __init__(self, looks: int, fault: Callable[[web.Request, str], Fault | None]) -> None:
        self._looks = looks
        self._fault = fault
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, _Batch] = {}

    def routes(self, allowed: Callable[[Handler], Handler]) -> Iterable[web.RouteDef]:
        """Return the routes, each behind the check of the token."""
        return [
            web.post("/v1/files", allowed(self._upload)),
            web.get("/v1/files/{id}/content", allowed(self._content)),
            web.delete("/v1/files/{id}", allowed(self._delete)),
            web.post("/v1/batches", allowed(self._create)),
            web.get("/v1/batches", allowed(self._list)),
            web.get("/v1/batches/{id}", allowed(self._look)),
            web.post("/v1/batches/{id}/cancel", allowed(self._cancel)),
        ]

    async def _upload(self, request: web.Request) -> web.Response:
        if request.content_type != "multipart/form-data":
            raise BadRequestError("a file comes as multipart/form-data")
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in BytesParser().parsebytes(head + await request.read()).walk()
        }
        purpose, content = parts.get("purpose"), parts.get("file")
        if purpose != b"batch" or not isinstance(content, bytes):
            raise BadRequestError("file and purpose=batch are needed")
        name = f"file-{secrets.token_hex(8)}"
        self._files[name] = content
        return web.json_response(
            {
                "id": name, "object": "file", "bytes": len(content), "created_at": _CREATED,
                "filename": "batch.jsonl", "purpose": "batch", "status": "processed",
            }
        )  # fmt: skip

    async def _content(self, request: web.Request) -> web.Response:
        content = self._files.get(request.match_info["id"])
        if content is None:
            raise web.HTTPNotFound(text="no such file")
        return web.Response(body=content, content_type="application/octet-stream")

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if self._files.pop(name, None) is None:
            raise web.HTTPNotFound(text="no such file")
        return web.json_response({"id": name, "object": "file", "deleted": True})

    async def _create(self, request: web.Request) -> web.Response:
        form = read(_BatchForm, await request.read())
        content = self._files.get(form.input_file_id)
        if content is None:
            raise web.HTTPNotFound(text="no such file")
        batch = _Batch(form, f"batch_{secrets.token_hex(8)}")
        try:
            batch.lines = _lines(form.endpoint, content)
        except BadRequestError as error:
            batch.status, batch.problem = "failed", str(error)
        self._batches[batch.id] = batch
        return web.json_response(_document(batch))

    async def _list(self, request: web.Request) -> web.Response:
        limit = int(request.query.get("limit", _PAGE))
        newest = list(self._batches.values())[::-1]
        after = request.query.get("after")
        if after is not None:
            places = [place for place, one in enumerate(newest) if one.id == after]
            newest = newest[places[0] + 1 :] if places else []
        page = [_document(batch) for batch in newest[:limit]]
        return web.json_response(
            {"object": "list", "data": page, "has_more": len(newest) > limit,
             "first_id": page[0]["id"] if page else None,
             "last_id": page[-1]["id"] if page else None}
        )  # fmt: skip

    async def _look(self, request: web.Request) -> web.Response:
        batch = self._find(request)
        if batch.status in ("validating", "in_progress"):
            batch.looks += 1
            batch.status = "in_progress"
            if batch.looks >= self._looks:
                self._work(request, batch)
        return web.json_response(_document(batch))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._find(request)
        if batch.status in ("validating", "in_progress"):
            batch.status = "cancelled"
        return web.json_response(_document(batch))

    def _find(self, request: web.Request) -> _Batch:
        batch = self._batches.get(request.match_info["id"])
        if batch is None:
            raise web.HTTPNotFound(text="no such batch")
        return batch

    def _work(self, request: web.Request, batch: _Batch) -> None:
        """Answer all lines, the last one first: `custom_id` is what counts."""
        wire = _BY_ENDPOINT[batch.form.endpoint]
        good: list[str] = []
        bad: list[str] = []
        for line in reversed(batch.lines):
            fault = self._fault(request, str(line.body.get("model", "")))
            if fault is not None and fault.kind == "hang":
                continue  # never answered: it expires
            status, body = _answered(wire, request, line, fault)
            said = {
                "id": f"batch_req_{secrets.token_hex(4)}",
                "custom_id": line.custom_id,
                "response": {"status_code": status, "request_id": "r", "body": body},
                "error": None,
            }
            (good if status == 200 else bad).append(json.dumps(said))
        unanswered = len(batch.lines) - len(good) - len(bad)
        batch.status = "expired" if unanswered else "completed"
        batch.counts = (len(good), len(bad))
        batch.output, batch.errors = self._keep(good), self._keep(bad)

    def _keep(self, lines: list[str]) -> str:
        if not lines:
            return ""
        name = f"file-{secrets.token_hex(8)}"
        self._files[name] = "\n".join([*lines, ""]).encode()
        return name


def _lines(endpoint: str, content: bytes) -> list[_Line]:
    """Read a file of requests as strictly as the vendor does; raises BadRequestError."""
    if endpoint not in _BY_ENDPOINT:
        raise BadRequestError(f"no batches for {endpoint}")
    lines = [read(_Line, line) for line in content.splitlines() if line.strip()]
    if not lines:
        raise BadRequestError("the file holds no request")
    if len({line.custom_id for line in lines}) != len(lines):
        raise BadRequestError("two requests have the same custom_id")
    if any(line.url != endpoint for line in lines):
        raise BadRequestError("a request's url is not the batch's endpoint")
    if any(line.body.get("stream") for line in lines):
        raise BadRequestError("a batch does not stream")
    return lines


def _answered(
    wire: Wire, request: web.Request, line: _Line, fault: Fault | None
) -> tuple[int, dict[str, Any]]:
    if fault is not None and fault.kind == "error":
        return fault.status, wire.error(fault.status, fault.message, fault)
    try:
        return 200, wire.answer(request, json.dumps(line.body).encode(), fault).document
    except BadRequestError as error:
        return 400, wire.error(400, str(error), None)
    except UnknownModelError as error:
        return 404, wire.error(404, str(error), None)


def _document(batch: _Batch) -> dict[str, Any]:
    errors = None
    if batch.problem:
        one = {"code": "invalid", "message": batch.problem, "line": None, "param": None}
        errors = {"object": "list", "data": [one]}
    return {
        "id": batch.id, "object": "batch", "endpoint": batch.form.endpoint, "errors": errors,
        "input_file_id": batch.form.input_file_id, "completion_window": "24h",
        "status": batch.status, "output_file_id": batch.output or None,
        "error_file_id": batch.errors or None, "created_at": _CREATED,
        "metadata": batch.form.metadata,
        "request_counts": {"total": len(batch.lines), "completed": batch.counts[0],
                           "failed": batch.counts[1]},
    }  # fmt: skip
