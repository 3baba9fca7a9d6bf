"""The stand-in vendor's public side: the Open Inference Protocol v2 over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler

from services.standin import llm, oip, spans
from services.standin.anthropic_batches import PREFIX, MessageBatches
from services.standin.engine import Engine, UnknownModelError
from services.standin.faults import FAULT_HEADER, Fault, Schedule
from services.standin.ledger import CLIENT_GONE, Entry, Ledger, plain
from services.standin.oauth import TokenServer
from services.standin.openai_batches import Batches
from services.standin.settings import Settings
from services.standin.wire import BODY, Wire

COST_HEADER = "x-standin-cost-usd"
NAME = "twinpath stand-in vendor (not a real vendor)"
VERSION = "1"
_DRIP_PIECES = 10
_ENTRY = web.RequestKey("entry", Entry)


class Silence(Exception):  # noqa: N818 - not an error: the fault is that nothing is answered
    """Ends a request without an answer."""


@dataclass(slots=True)
class Latency:
    """What is added before every answer; the admin endpoint changes it."""

    base_ms: float
    jitter_ms: float


@dataclass(slots=True)
class Public:
    """State and handlers of the public side.

    Attributes:
        settings: How it was started.
        engine: The models.
        schedule: Faults in force.
        ledger: What arrived.
    """

    settings: Settings
    engine: Engine
    schedule: Schedule
    ledger: Ledger
    latency: Latency = field(init=False)
    _random: random.Random = field(init=False)
    token_server: TokenServer = field(init=False)
    _tokens: dict[bytes, bool] = field(init=False)
    _batches: Batches = field(init=False)
    _message_batches: MessageBatches = field(init=False)

    def __post_init__(self) -> None:
        self.latency = Latency(self.settings.latency_ms, self.settings.jitter_ms)
        self._batches = Batches(self.settings.batch_looks, self._fault)
        self._message_batches = MessageBatches(self.settings.batch_looks, self._fault)
        self._random = random.Random(self.settings.seed)  # noqa: S311 - jitter, not secrets
        self.token_server = TokenServer(self.settings.bearer, self.settings.oauth_lifetime_s)
        self._tokens = {self.settings.bearer.encode(): True}
        if self.settings.limited_bearer is not None:
            self._tokens[self.settings.limited_bearer.encode()] = False

    def app(self) -> web.Application:
        """The web application."""

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._count(request, handler)

        app = web.Application(client_max_size=self.settings.max_body_bytes, middlewares=[count])
        app.add_routes(
            [
                web.get("/v2", self._server),
                web.get("/v2/health/live", self._health),
                web.get("/v2/health/ready", self._health),
            ]
        )
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            app.router.add_get(model, self._describe)
            app.router.add_get(f"{model}/ready", self._ready)
            app.router.add_post(f"{model}/infer", self._infer)
        for path in llm.BY_PATH:
            app.router.add_post(path, self._ask)
        app.router.add_get("/v1/models", self._list)
        app.add_routes(self._batches.routes(self._allowed("/v1/chat/completions")))
        app.add_routes(self._message_batches.routes(self._allowed("/v1/messages")))
        app.router.add_post("/oauth/token", self.token_server.answer)
        return app

    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count every request on arrival and once more at its end, and word every error."""
        if self.schedule.outage():
            _reset(request)  # a connection that was open before the outage
            raise Silence
        entry = self.ledger.arrive(time.time(), request.method, request.path, request.headers)
        request[_ENTRY] = entry
        status, sent = CLIENT_GONE, 0
        try:
            try:
                reply = await handler(request)
            except web.HTTPException as error:
                if error.status < 400:
                    raise
                text = error.text or error.reason
                reply = _error(request, error.status, text, dict(error.headers))
            except UnknownModelError as error:
                reply = _error(request, 404, str(error.args[0]))
            except oip.BadRequestError as error:
                reply = _error(request, 400, str(error))
            status, sent = reply.status, _size(reply)
        except Silence:
            _reset(request)
            raise
        finally:
            self.ledger.finish(entry, status, sent)
        return reply

    async def _server(self, request: web.Request) -> web.Response:
        self._authorize(request, to_infer=False)
        return web.json_response(
            {"name": NAME, "version": VERSION, "extensions": ["binary_tensor_data"]}
        )

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(status=200)

    async def _describe(self, request: web.Request) -> web.Response:
        self._authorize(request, to_infer=False)
        name = request.match_info["model"]
        _, model = self.engine.find(name, request.match_info.get("version"))
        return web.json_response(
            {
                "name": name,
                "versions": self.engine.versions(name),
                "platform": model.platform,
                "inputs": [spec.as_json() for spec in model.inputs],
                "outputs": [spec.as_json() for spec in model.outputs],
            }
        )

    async def _ready(self, request: web.Request) -> web.Response:
        self._authorize(request, to_infer=False)
        self.engine.find(request.match_info["model"], request.match_info.get("version"))
        return web.Response(status=200)

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        entry: Entry = request[_ENTRY]
        entry.model = request.match_info["model"]
        with spans.inference(request.headers, entry.model) as span:
            reply = await self._infer_traced(request, entry)
            span.set_attribute("http.response.status_code", reply.status)
            return reply

    def _known(self) -> dict[bytes, bool]:
        """Tokens, and whether each may infer."""
        if not self.token_server.given:
            return self._tokens
        return self._tokens | {token.encode(): True for token in self.token_server.live()}

    async def _list(self, request: web.Request) -> web.Response:
        """The language models; either kind of header shows the token."""
        wires = (llm.BY_PATH["/v1/messages"], llm.BY_PATH["/v1/chat/completions"])
        if not any(llm.authorized(wire, request, self._known()) is not None for wire in wires):
            raise web.HTTPUnauthorized(text="a valid token is needed")
        data = [{"id": name, "object": "model"} for name in llm.MODELS]
        return web.json_response({"object": "list", "data": data})

    def _allowed(self, like: str) -> Callable[[Handler], Handler]:
        """Check the token as a path does, before a handler of batches; play faults of `batches`."""
        wire = llm.BY_PATH[like]

        def allowed(handler: Handler) -> Handler:
            async def checked(request: web.Request) -> web.StreamResponse:
                entry: Entry = request[_ENTRY]
                self.ledger.keep(entry, await request.read())
                fault = self._fault(request, "batches")
                entry.fault = None if fault is None else fault.kind
                early = None if fault is None else await self._play_before(request, fault)
                if early is not None:
                    return early
                may_ask = llm.authorized(wire, request, self._known())
                if may_ask is None:
                    raise web.HTTPUnauthorized(text="a valid token is needed")
                if not may_ask:
                    raise web.HTTPForbidden(text="this token may not ask")
                return await handler(request)

            return checked

        return allowed

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        """Answer a question to a language model."""
        entry: Entry = request[_ENTRY]
        wire = llm.BY_PATH[request.path]
        body = await request.read()
        request[BODY] = body
        entry.model = llm.asked_model(body) or ""
        self.ledger.keep(entry, body)
        with spans.inference(request.headers, entry.model) as span:
            fault = self._fault(request, entry.model)
            entry.fault = None if fault is None else fault.kind
            await self._wait()
            early = None if fault is None else await self._play_before(request, fault)
            reply = early or await self._say(request, wire, body, entry, fault)
            span.set_attribute("http.response.status_code", reply.status)
            return reply

    async def _say(
        self, request: web.Request, wire: Wire, body: bytes, entry: Entry, fault: Fault | None
    ) -> web.StreamResponse:
        may_ask = llm.authorized(wire, request, self._known())
        if may_ask is None:
            raise web.HTTPUnauthorized(text="a valid token is needed")
        if not may_ask:
            raise web.HTTPForbidden(text="this token may not ask")
        if request.content_type != oip.JSON_TYPE:
            raise web.HTTPUnsupportedMediaType(text=f"cannot read {request.content_type}")
        said = wire.answer(request, body, fault)
        settings = self.settings
        cost = settings.price_per_call_usd + settings.price_per_token_usd * said.cost_tokens
        entry.cost_usd = cost
        headers = _spent(fault) if fault is not None else {}
        if said.events is not None:
            reply, broken = await llm.stream(request, wire, said.events, fault)
            if broken:
                raise Silence
            return reply
        content, headers = llm.whole(said, headers | {COST_HEADER: plain(cost)})
        if fault is None:
            return web.Response(body=content, headers=headers)
        return await self._play_after(request, fault, content, headers)

    async def _infer_traced(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        body = await request.read()  # answers 413 by itself
        self.ledger.keep(entry, body)
        fault = self._fault(request, entry.model)
        entry.fault = None if fault is None else fault.kind
        await self._wait()
        if fault is not None:
            early = await self._play_before(request, fault)
            if early is not None:
                return early
        self._authorize(request, to_infer=True)
        content, headers = await self._answer(request, body, entry, fault)
        if fault is None:
            return web.Response(body=content, headers=headers)
        return await self._play_after(request, fault, content, headers)

    async def _answer(
        self, request: web.Request, body: bytes, entry: Entry, fault: Fault | None
    ) -> tuple[bytes, dict[str, str]]:
        if request.content_type not in (oip.JSON_TYPE, oip.BINARY_TYPE):
            raise web.HTTPUnsupportedMediaType(text=f"cannot read {request.content_type}")
        # Who names no type writes JSON, as Triton's own client does; aiohttp would call it binary.
        said = request.headers.get("Content-Type", oip.JSON_TYPE)
        if said.startswith(oip.BINARY_TYPE) and oip.HEADER_LENGTH not in request.headers:
            raise oip.BadRequestError(f"binary content needs the header {oip.HEADER_LENGTH}")
        asked = oip.parse(body, request.headers.get(oip.HEADER_LENGTH))
        name = request.match_info["model"]
        version, model = self.engine.find(name, request.match_info.get("version"))
        outputs = await self.engine.run(model, asked.inputs)
        elements = sum(tensor.count for tensor in asked.inputs)
        cost = self.settings.price_per_call_usd + self.settings.price_per_element_usd * elements
        price = plain(cost)
        reported = version
        if fault is not None and fault.kind == "version_drift":
            reported = fault.version
        usage = {"cost_usd": price, "input_elements": str(elements)}
        content, headers = oip.render(asked, name, reported, outputs, usage)
        entry.cost_usd = cost
        return content, headers | {COST_HEADER: price}

    def _authorize(self, request: web.Request, *, to_infer: bool) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            for known, may_infer in self._known().items():
                if hmac.compare_digest(token.strip().encode(errors="replace"), known):
                    if to_infer and not may_infer:
                        raise web.HTTPForbidden(text="this token may not infer")
                    return
        raise web.HTTPUnauthorized(
            text="a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"}
        )

    def _fault(self, request: web.Request, model: str | None) -> Fault | None:
        asked = request.headers.get(FAULT_HEADER)
        if asked is not None and self.settings.fault_header:
            try:
                return Fault.parse(asked)
            except ValueError as error:
                raise oip.BadRequestError(str(error)) from error
        return self.schedule.draw(model)

    async def _wait(self) -> None:
        delay = self.latency.base_ms + self._random.uniform(0, self.latency.jitter_ms)
        if delay:
            await asyncio.sleep(delay / 1000)

    async def _play_before(self, request: web.Request, fault: Fault) -> web.Response | None:
        """Faults that come before any work; None: go on."""
        match fault.kind:
            case "error":
                headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
                return _error(request, fault.status, fault.message, headers, fault)
            case "rate_limit":
                headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
                text = "rate limit of the stand-in vendor exceeded"
                return _error(request, 429, text, headers, fault)
            case "reset" | "outage":
                raise Silence
            case "hang":
                await _until_gone(request, fault.delay_ms / 1000)
                raise Silence
            case "slow":
                await asyncio.sleep(fault.delay_ms / 1000)
            case _:
                pass
        return None

    async def _play_after(
        self, request: web.Request, fault: Fault, content: bytes, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Faults of the answer itself."""
        match fault.kind:
            case "cut":
                await _send_part(request, content, headers)
            case "drip":
                return await _drip(request, content, headers, fault.delay_ms / 1000)
            case "truncated":
                head = int(headers.get(oip.HEADER_LENGTH, len(content)))
                return web.Response(body=content[: head // 2], headers=headers)
            case "wrong_content_type":
                return web.Response(body=content, headers=headers | {"Content-Type": "text/html"})
            case "garbage":
                return web.Response(
                    body=b"\x00\xff not json", headers={"Content-Type": oip.JSON_TYPE}
                )
            case "error_inside":
                return web.json_response({"error": fault.message})
            case "wrong_outputs":
                return web.json_response(
                    {
                        "model_name": request.match_info.get("model", ""),
                        "model_version": "1",
                        "outputs": [
                            {"name": "unasked", "datatype": "INT32", "shape": [1], "data": [0]}
                        ],
                    }
                )
            case _:
                pass
        return web.Response(body=content, headers=headers)


async def _until_gone(request: web.Request, seconds: float) -> None:
    """Wait until the caller leaves (its handler is cancelled then), or time is up."""
    del request
    await asyncio.sleep(seconds)


async def _send_part(request: web.Request, content: bytes, headers: dict[str, str]) -> NoReturn:
    part = web.StreamResponse(headers=headers | {"Content-Length": str(len(content))})
    await part.prepare(request)
    await part.write(content[: len(content) // 2])
    await asyncio.sleep(0.02)  # so that it leaves before the reset, which drops what is unsent
    raise Silence


async def _drip(
    request: web.Request, content: bytes, headers: dict[str, str], seconds: float
) -> web.StreamResponse:
    reply = web.StreamResponse(headers=headers | {"Content-Length": str(len(content))})
    await reply.prepare(request)
    async for piece in _pieces(content, seconds):
        await reply.write(piece)
    await reply.write_eof()
    return reply


async def _pieces(content: bytes, seconds: float) -> AsyncIterator[bytes]:
    size = max(1, -(-len(content) // _DRIP_PIECES))
    for start in range(0, len(content), size):
        await asyncio.sleep(seconds / _DRIP_PIECES)
        yield content[start : start + size]


def _error(
    request: web.Request,
    status: int,
    message: str,
    headers: dict[str, str] | None = None,
    fault: Fault | None = None,
) -> web.Response:
    kept = {k: v for k, v in (headers or {}).items() if k.lower() != "content-type"}
    wire = llm.BY_PATH.get(request.path)
    if wire is None and request.path.startswith(("/v1/files", "/v1/batches")):
        wire = llm.BY_PATH["/v1/chat/completions"]
    elif wire is None and request.path.startswith(PREFIX):
        wire = llm.BY_PATH["/v1/messages"]
    document = {"error": message} if wire is None else wire.error(status, message, fault)
    return web.json_response(document, status=status, headers=kept)


def _spent(fault: Fault) -> dict[str, str]:
    """Headers that allow nothing more, by the habits of two vendors."""
    if fault.kind != "last_one":
        return {}
    return {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": fault.retry_after or "1s",
    }


def _size(reply: web.StreamResponse) -> int:
    return len(reply.body) if isinstance(reply, web.Response) and reply.body else 0  # type: ignore[arg-type]


def _reset(request: web.Request) -> None:
    """Reset the connection: lingering for 0 s makes the kernel send RST."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
