"""The stand-in vendor's admin endpoint, on 127.0.0.1 only: counters, log, faults, latency.

GET    /admin/health    200 once it runs
GET    /admin/counters  what was received, by status, model and fault; bytes; what was billed
GET    /admin/log       the newest received requests with their bodies; ?limit=N (100)
DELETE /admin/log       forget log and counters
GET    /admin/faults    the schedule
PUT    /admin/faults    replace it: a list of rules, see `faults.Rule`
DELETE /admin/faults    no more faults
PUT    /admin/latency   {"base_ms": …, "jitter_ms": …}
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.standin.faults import Rule
from services.standin.server import NAME, Latency, Public

_RULES = TypeAdapter(list[Rule])


class _LatencyForm(BaseModel):
    model_config = ConfigDict(extra="forbid")

    base_ms: float = Field(ge=0)
    jitter_ms: float = Field(default=0.0, ge=0)


def admin_app(public: Public, on_faults: Callable[[], Awaitable[None]]) -> web.Application:
    """The admin's web application.

    Args:
        public: The side that it looks into and steers.
        on_faults: Called after the schedule was changed, so that an outage takes hold at once.
    """

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"name": NAME, "models": public.engine.names()})

    async def counters(_: web.Request) -> web.Response:
        return web.json_response(public.ledger.counters())

    async def log(request: web.Request) -> web.Response:
        limit = request.query.get("limit", "100")
        if not limit.isdigit():
            raise web.HTTPBadRequest(text="limit must be a number")
        entries = public.ledger.entries(int(limit))
        return web.json_response({"entries": [entry.as_json() for entry in entries]})

    async def clear_log(_: web.Request) -> web.Response:
        public.ledger = public.ledger.emptied()
        return web.Response(status=204)

    async def faults(_: web.Request) -> web.Response:
        return web.json_response([rule.model_dump() for rule in public.schedule.rules])

    async def put_faults(request: web.Request) -> web.Response:
        public.schedule.replace(_read(_RULES.validate_json, await request.read()))
        await on_faults()
        return web.Response(status=204)

    async def clear_faults(_: web.Request) -> web.Response:
        public.schedule.replace([])
        await on_faults()
        return web.Response(status=204)

    async def put_latency(request: web.Request) -> web.Response:
        form = _read(_LatencyForm.model_validate_json, await request.read())
        public.latency = Latency(form.base_ms, form.jitter_ms)
        return web.Response(status=204)

    app = web.Application()
    app.add_routes(
        [
            web.get("/admin/health", health),
            web.get("/admin/counters", counters),
            web.get("/admin/log", log),
            web.delete("/admin/log", clear_log),
            web.get("/admin/faults", faults),
            web.put("/admin/faults", put_faults),
            web.delete("/admin/faults", clear_faults),
            web.put("/admin/latency", put_latency),
        ]
    )
    return app


def _read(parse: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return parse(body)
    except ValidationError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
