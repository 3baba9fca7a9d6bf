"""The stand-in's reading of Anthropic's messages."""

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
from services.standin.openai_wire import ended
from services.standin.wire import Form, Said, read, strict_schema

# The documented one, and the one that the SDK of this day sends (with a bearer token).
_VERSIONS = ("2023-06-01", "2026-10-21")
_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    529: "overloaded_error",
}  # fmt: skip


class _Message(Form):
    role: Literal["user", "assistant"]
    content: str


class _Tool(Form):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str = ""
    input_schema: dict[str, Any]


class _ToolChoice(Form):
    type: Literal["auto", "any", "tool"]
    name: str | None = None


class _MessagesForm(Form):
    model: str
    max_tokens: int = Field(ge=1)
    messages: list[_Message] = Field(min_length=1)
    system: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    tools: list[_Tool] = Field(default_factory=list)
    tool_choice: _ToolChoice | None = None
    stream: bool = False


class Messages:
    """POST /v1/messages."""

    path = "/v1/messages"

    def authorize(self, request: web.Request, token: str) -> bool:
        """In the header `x-api-key`, or as a bearer token, as the vendor's SDK sends it."""
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        shown = request.headers.get("x-api-key", "") or bearer
        return hmac.compare_digest(shown.encode(errors="replace"), token.encode())

    def check_version(self, request: web.Request) -> None:
        """Every request says which version of the protocol it speaks; raises BadRequestError."""
        if request.headers.get("anthropic-version") not in _VERSIONS:
            raise BadRequestError("anthropic-version: header is required")

    def answer(self, request: web.Request, body: bytes, fault: Fault | None) -> Said:
        """See `Wire`."""
        self.check_version(request)
        form = read(_MessagesForm, body)
        if form.model != chat.CHAT:
            raise UnknownModelError(f"model: {form.model}")
        if request.headers["anthropic-version"] > "2026" and form.temperature is not None:
            raise BadRequestError("temperature: extra inputs are not permitted")
        if form.messages[-1].role != "user":
            raise BadRequestError("messages: the last one must be the user's")
        drifted = fault is not None and fault.kind == "version_drift"
        version = fault.version if fault is not None and drifted else chat.VERSIONS[chat.CHAT]
        question = form.messages[-1].content
        words, reason = ended(
            chat.tokens(chat.say(question)), form.max_tokens, fault, "end_turn", "max_tokens",
            "refusal",
        )  # fmt: skip
        if fault is not None and fault.kind == "refusal":
            words, reason = [], "refusal"
        block: dict[str, Any] = {"type": "text", "text": "".join(words)}
        if form.tool_choice is not None and form.tool_choice.type == "tool":
            chosen = [tool for tool in form.tools if tool.name == form.tool_choice.name]
            if not chosen:
                raise BadRequestError("tool_choice.name: is none of the tools")
            strict_schema(chosen[0].input_schema, "tools.0.input_schema")
            if reason in ("end_turn", "max_tokens") and (fault is None or fault.kind != "length"):
                reason = "tool_use"
            filled = chat.fill(chosen[0].input_schema, question) if reason == "tool_use" else {}
            block = {"type": "tool_use", "id": "toolu_1", "name": chosen[0].name, "input": filled}
        asked = len(chat.tokens(question)) + len(chat.tokens(form.system or ""))
        written = 1 if fault is not None and fault.kind == "cache_write" else 0
        usage = {
            "input_tokens": asked - asked // 2 - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": asked // 2,
            "output_tokens": len(words),
        }
        document = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": version,
            "content": [block],
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage,
        }
        billed = asked + len(words)
        if not form.stream:
            return Said(document, cost_tokens=billed)
        start: dict[str, Any] = {
            "content": [],
            "stop_reason": None,
            "usage": usage | {"output_tokens": 1},
        }
        bodies: list[dict[str, Any]] = [
            {"type": "message_start", "message": document | start},
            {"type": "content_block_start", "index": 0, "content_block": {**block, "text": ""}},
            {"type": "ping"},
        ]
        bodies += [
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": word},
            }
            for word in words
        ]
        stop = {"stop_reason": reason, "stop_sequence": None}
        bodies += [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": stop, "usage": {"output_tokens": len(words)}},
            {"type": "message_stop"},
        ]
        return Said(events=[_event(body) for body in bodies], cost_tokens=billed)

    def error(self, status: int, message: str, fault: Fault | None) -> dict[str, Any]:
        """An error object."""
        kind = _KINDS.get(status, "api_error")
        if fault is not None and fault.code:
            kind = fault.code
        return {"type": "error", "error": {"type": kind, "message": message}}

    def error_event(self, message: str) -> bytes:
        """An error as an event of its own."""
        return _event(self.error(529, message, None))


def _event(document: dict[str, Any]) -> bytes:
    return f"event: {document['type']}\ndata: {json.dumps(document)}\n\n".encode()
