"""The stand-in's reading of OpenAI's protocols: chat completions, responses, embeddings."""

from __future__ import annotations

import hmac
import json
from typing import Any, Literal

from aiohttp import web
from pydantic import Field

from services.standin import chat
from services.standin.engine import UnknownModelError
from services.standin.faults import Fault
from services.standin.oip import BadRequestError
from services.standin.wire import Form, Said, read, strict_schema

_CREATED = 1_790_000_000


class _Message(Form):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class _Schema(Form):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    strict: bool = False
    schema_: dict[str, Any] = Field(alias="schema")


class _ResponseFormat(Form):
    type: Literal["text", "json_schema"]
    json_schema: _Schema | None = None


class _StreamOptions(Form):
    include_usage: bool = False


class _ChatForm(Form):
    model: str
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    response_format: _ResponseFormat | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _TextFormat(Form):
    type: Literal["text", "json_schema"]
    name: str = ""
    strict: bool = False
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class _TextForm(Form):
    format: _TextFormat


class _ResponsesForm(Form):
    model: str
    input: str
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=16)
    temperature: float | None = Field(default=None, ge=0, le=2)
    store: bool = True
    stream: bool = False
    text: _TextForm | None = None


class _EmbeddingsForm(Form):
    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, le=4096)


class _OpenAI:
    """Tokens and errors, which all of OpenAI's protocols have in common."""

    def authorize(self, request: web.Request, token: str) -> bool:
        """As a bearer token, or in Azure's header."""
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        shown = shown or request.headers.get("api-key", "")
        return hmac.compare_digest(shown.encode(errors="replace"), token.encode())

    def error(self, status: int, message: str, fault: Fault | None) -> dict[str, Any]:
        """An error object."""
        code = {404: "model_not_found", 429: "rate_limit_exceeded"}.get(status)
        if fault is not None and fault.code:
            code = fault.code
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def error_event(self, message: str) -> bytes:
        """An error object as data."""
        return _event(self.error(500, message, None))


class Chat(_OpenAI):
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"

    def answer(self, request: web.Request, body: bytes, fault: Fault | None) -> Said:
        """See `Wire`."""
        del request
        form = read(_ChatForm, body)
        version = _known(form.model, chat.CHAT, fault)
        if form.max_tokens is not None and form.max_completion_tokens is not None:
            raise BadRequestError("max_tokens and max_completion_tokens exclude each other")
        if form.stream_options is not None and not form.stream:
            raise BadRequestError("stream_options belong to streams")
        question = form.messages[-1].content
        text = chat.say(question)
        wanted = form.response_format
        if wanted is not None and wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise BadRequestError("response_format.json_schema is missing")
            if wanted.json_schema.strict:
                strict_schema(wanted.json_schema.schema_)
            text = json.dumps(chat.fill(wanted.json_schema.schema_, question))
        limit = form.max_completion_tokens or form.max_tokens
        words, finish = ended(chat.tokens(text), limit, fault, "stop", "length", "content_filter")
        asked = sum(len(chat.tokens(message.content)) for message in form.messages)
        if fault is not None and fault.kind == "long":
            words = words * fault.times
        usage = {
            "prompt_tokens": asked,
            "completion_tokens": len(words),
            "total_tokens": asked + len(words),
            "prompt_tokens_details": {"cached_tokens": asked // 2},
        }
        head = {"id": "chatcmpl-1", "created": _CREATED, "model": version}
        billed = asked + len(words)
        if not form.stream:
            message = {"role": "assistant", "content": "".join(words), "refusal": None}
            if fault is not None and fault.kind == "refusal":
                message |= {"content": None, "refusal": "I can't help with that."}
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            document = head | {"object": "chat.completion", "choices": [choice], "usage": usage}
            return Said(document, cost_tokens=billed)
        head["object"] = "chat.completion.chunk"
        deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
        events = [_chunk(head, delta, None) for delta in deltas]
        events.append(_chunk(head, {}, finish))
        if form.stream_options is not None and form.stream_options.include_usage:
            events.append(_event(head | {"choices": [], "usage": usage}))
        return Said(events=[*events, b"data: [DONE]\n\n"], cost_tokens=billed)


class Responses(_OpenAI):
    """POST /v1/responses."""

    path = "/v1/responses"

    def answer(self, request: web.Request, body: bytes, fault: Fault | None) -> Said:
        """See `Wire`."""
        del request
        form = read(_ResponsesForm, body)
        version = _known(form.model, chat.CHAT, fault)
        text = chat.say(form.input)
        if form.text is not None and form.text.format.type == "json_schema":
            schema = form.text.format.schema_
            if form.text.format.strict or schema is None:
                strict_schema(schema)
            text = json.dumps(chat.fill(schema or {}, form.input))
        words, finish = ended(
            chat.tokens(text), form.max_output_tokens, fault, "", "max_output_tokens",
            "content_filter",
        )  # fmt: skip
        asked = len(chat.tokens(form.input)) + len(chat.tokens(form.instructions or ""))
        usage = {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": asked // 2},
            "output_tokens": len(words),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked + len(words),
        }
        part: dict[str, Any] = {
            "type": "output_text", "text": "".join(words), "annotations": [], "logprobs": [],
        }  # fmt: skip
        if fault is not None and fault.kind == "refusal":
            part = {"type": "refusal", "refusal": "I can't help with that."}
        status = "incomplete" if finish else "completed"
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "status": status,
            "content": [part],
        }  # fmt: skip
        document = {
            "id": "resp_1",
            "object": "response",
            "created_at": _CREATED,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": finish} if finish else None,
            "instructions": form.instructions,
            "model": version,
            "output": [message],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
        }
        if not form.stream:
            return Said(document, cost_tokens=asked + len(words))
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        started = document | {"status": "in_progress", "output": [], "usage": None}
        bodies: list[dict[str, Any]] = [{"type": "response.created", "response": started}]
        bodies += [
            {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}
            for word in words
        ]
        bodies.append({"type": f"response.{status}", "response": document})
        events = [
            f"event: {body['type']}\n".encode() + _event(body | {"sequence_number": number})
            for number, body in enumerate(bodies)
        ]
        return Said(events=events, cost_tokens=asked + len(words))

    def error_event(self, message: str) -> bytes:
        """An error as an event of its own."""
        body = {"type": "error", "code": None, "message": message, "param": None}
        return b"event: error\n" + _event(body)


class Embeddings(_OpenAI):
    """POST /v1/embeddings."""

    path = "/v1/embeddings"

    def answer(self, request: web.Request, body: bytes, fault: Fault | None) -> Said:
        """See `Wire`."""
        del request
        form = read(_EmbeddingsForm, body)
        version = _known(form.model, chat.EMBED, fault)
        texts = [form.input] if isinstance(form.input, str) else form.input
        if not texts or not all(texts) or form.encoding_format != "float":
            raise BadRequestError("input: texts must not be empty; only floats are given here")
        rows = [chat.embed(text, form.dimensions or 26) for text in texts]
        data = [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(rows)
        ]
        used = sum(len(chat.tokens(text)) for text in texts)
        usage = {"prompt_tokens": used, "total_tokens": used}
        # Not in the order of the texts: `index` is what counts.
        document = {"object": "list", "data": data[::-1], "model": version, "usage": usage}
        return Said(document, cost_tokens=used)


def ended(
    words: list[str], limit: int | None, fault: Fault | None, stop: str, length: str, filtered: str
) -> tuple[list[str], str]:
    """An answer up to its limit or to its fault, and why it ends there."""
    kind = None if fault is None else fault.kind
    if kind == "content_filter":
        return words[:2], filtered
    if kind == "length":
        return words[:2], length
    if limit is not None and len(words) > limit:
        return words[:limit], length
    return words, stop


def _known(asked: str, model: str, fault: Fault | None) -> str:
    """The version of a model; raises UnknownModelError."""
    if asked != model:
        raise UnknownModelError(f"The model `{asked}` does not exist")
    if fault is not None and fault.kind == "version_drift":
        return fault.version
    return chat.VERSIONS[model]


def _chunk(head: dict[str, Any], delta: dict[str, Any], finish: str | None) -> bytes:
    return _event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
