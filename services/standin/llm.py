"""The stand-in's JSON protocols over HTTP: auth, faults, whole answers, streams."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from services.standin import chat
from services.standin.anthropic_wire import Messages
from services.standin.faults import Fault
from services.standin.openai_wire import Chat, Embeddings, Responses
from services.standin.rows_wire import SageMaker, Score
from services.standin.wire import Said, Wire

WIRES: tuple[Wire, ...] = (Chat(), Responses(), Embeddings(), Messages(), SageMaker(), Score())
BY_PATH = {wire.path: wire for wire in WIRES}
MODELS = tuple(chat.VERSIONS)
EVENTS_TYPE = "text/event-stream"
# So much of a stream comes before a fault in its middle.
_BEFORE_FAULT = 6


def asked_model(body: bytes) -> str | None:
    """The model that a body names, if it names one."""
    try:
        document = json.loads(body)
    except ValueError:
        return None
    name = document.get("model") if isinstance(document, dict) else None
    return name if isinstance(name, str) else None


def authorized(wire: Wire, request: web.Request, tokens: dict[bytes, bool]) -> bool | None:
    """Whether a request's token may ask; None: there is none that we know."""
    for token, may_infer in tokens.items():
        if wire.authorize(request, token.decode()):
            return may_infer
    return None


def whole(said: Said, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """A whole answer's body and headers."""
    kind = {"Content-Type": "application/json"}
    return json.dumps(said.document).encode(), headers | said.headers | kind


async def stream(
    request: web.Request, wire: Wire, events: list[bytes], fault: Fault | None
) -> tuple[web.StreamResponse, bool]:
    """Send a stream with its fault, if it has one.

    Returns:
        The response, and whether the connection is to be reset.
    """
    reply = web.StreamResponse(headers={"Content-Type": EVENTS_TYPE, "Cache-Control": "no-cache"})
    await reply.prepare(request)
    kind = None if fault is None else fault.kind
    pause = fault.delay_ms / 1000 / len(events) if fault is not None and kind == "drip" else 0.0
    for number, event in enumerate(events):
        if number == _BEFORE_FAULT and fault is not None:
            if kind == "stall":
                await asyncio.sleep(fault.delay_ms / 1000)
            elif kind == "cut":
                await asyncio.sleep(0.02)  # so that it leaves before the reset
                return reply, True
            elif kind == "no_end":
                break
            elif kind == "error_inside":
                await reply.write(wire.error_event(fault.message))
                break
            elif kind == "garbage":
                await reply.write(b"data: {not json\n\n")
                break
        await asyncio.sleep(pause)
        await reply.write(event)
    await reply.write_eof()
    return reply, False
