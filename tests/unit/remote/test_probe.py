"""Whether a vendor is there, by what it answers to a probe."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from services.chassis.clock import SystemClock
from services.chassis.errors import ServiceError
from services.remote import catalog, providers
from services.remote.provider import Adapter
from tests.contract.provider_cases import CASES, Case

CHAT = next(case for case in CASES if case.name == "openai-chat text")
OIP = next(case for case in CASES if case.name == "oip-http")


@contextlib.asynccontextmanager
async def before(status: int, case: Case, folder: Path) -> AsyncIterator[Adapter]:
    """The adapter of a vendor that answers everything with a status."""

    async def answer(request: web.Request) -> web.Response:
        del request
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    file, token = folder / "providers" / "standin.yaml", folder / "token"
    file.parent.mkdir()
    token.write_text("token")
    file.write_text(case.provider()(url, token))
    found = catalog.load(folder, providers.mistakes)["standin"]
    adapter = providers.make(found, SystemClock(), 1024)
    try:
        yield adapter
    finally:
        await adapter.aclose()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "case", "reason"),
    [
        (200, CHAT, ""),
        (404, CHAT, ""),  # it has nothing there to look at, and says so
        (405, CHAT, ""),
        (429, CHAT, ""),
        (204, CHAT, "VENDOR_ANSWER_INVALID"),
        (301, CHAT, "VENDOR_REDIRECT"),
        (400, CHAT, "VENDOR_REJECTED_INPUT"),
        (401, CHAT, "VENDOR_TOKEN_REJECTED"),
        (403, CHAT, "VENDOR_FORBIDDEN"),
        (500, CHAT, "VENDOR_ERROR"),
        (503, CHAT, "VENDOR_UNAVAILABLE"),
        (200, OIP, ""),
        (404, OIP, "VENDOR_MODEL_UNKNOWN"),  # its protocol has a path that says whether it is ready
        (405, OIP, "VENDOR_REFUSED"),
        (429, OIP, "VENDOR_RATE_LIMITED"),
    ],
)
async def test_a_status_says_whether_the_vendor_is_there(tmp_path, status, case, reason) -> None:
    """Also one that limits our rate or has no such path; not one that does not take our token."""
    async with before(status, case, tmp_path) as adapter:
        if not reason:
            await adapter.probe(5.0)
            return
        with pytest.raises(ServiceError) as caught:
            await adapter.probe(5.0)
    assert caught.value.reason == reason
