"""The stand-in's token server: client credentials (RFC 6749, 4.4) for short-lived tokens."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import secrets
import time
from dataclasses import dataclass, field

from aiohttp import web

CLIENT_ID = "twinpath"


@dataclass(slots=True)
class TokenServer:
    """Gives tokens to the one client it knows.

    Attributes:
        secret: The client's secret; the vendor's own token serves.
        lifetime_s: Seconds that a token lives.
        available: Whether it answers; tests switch it off.
        delay_s: Seconds that it takes for an answer.
        given: Tokens given, and when each ends, on the monotonic clock.
    """

    secret: str
    lifetime_s: float
    available: bool = True
    delay_s: float = 0.0
    given: dict[str, float] = field(default_factory=dict)

    def live(self) -> list[str]:
        """Tokens that are good now."""
        now = time.monotonic()
        return [token for token, ends in self.given.items() if ends > now]

    async def answer(self, request: web.Request) -> web.Response:
        """POST /oauth/token."""
        await asyncio.sleep(self.delay_s)
        if not self.available:
            return web.json_response({"error": "temporarily_unavailable"}, status=503)
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        try:
            client, _, secret = base64.b64decode(shown, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            client = secret = ""
        right = hmac.compare_digest(secret.encode(), self.secret.encode())
        if scheme != "Basic" or client != CLIENT_ID or not right:
            return web.json_response({"error": "invalid_client"}, status=401)
        form = await request.post()
        if form.get("grant_type") != "client_credentials":
            return web.json_response({"error": "unsupported_grant_type"}, status=400)
        token = secrets.token_urlsafe(24)
        self.given[token] = time.monotonic() + self.lifetime_s
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime_s}
        return web.json_response(answer, headers={"Cache-Control": "no-store"})
