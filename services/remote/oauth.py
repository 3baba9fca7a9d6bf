"""OAuth 2 client credentials: tokens that live a while, refreshed before they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import aiohttp

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError
from services.remote import failures
from services.remote.catalog_access import OAuth2
from services.remote.tls import tls
from services.remote.tokens import TokenSource, usable
from services.remote.wire import AnswerError, load_object

_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
_MAX_ANSWER = 65_536
# Refreshed once four fifths of its life are over, so that a server which is away for a while is
# noticed by us, not by callers.
_AHEAD_SHARE = 0.2
# Seconds to wait after a refresh that failed, while the old token still serves.
_RETRY_S = 2.0
_DEFAULT_LIFETIME_S = 300.0
log = logging.getLogger(__name__)


class ClientCredentials:
    """One client at one token server; callers at the same moment share one exchange.

    Args:
        provider: The vendor's name, for errors and logs.
        config: The exchange.
        clock: Its monotonic clock tells a token's age.
        session: The HTTP client.
    """

    def __init__(
        self, provider: str, config: OAuth2, clock: Clock, session: aiohttp.ClientSession
    ) -> None:
        self._provider = provider
        self._config = config
        self._secret = TokenSource(provider, config.client_secret)
        self._clock = clock
        self._session = session
        self._tls = tls(config.ca_file)
        self._token = ""
        self._ends = 0.0
        self._due = 0.0
        self._running: asyncio.Task[str] | None = None

    async def token(self, left_s: float) -> str:
        """Return a token that is good now. A refresh ahead of its end waits for nobody.

        Args:
            left_s: Seconds that this may take. The exchange goes on for those who come later.

        Raises:
            ServiceError: VENDOR_TOKEN_MISSING, VENDOR_TOKEN_TIMEOUT, or what was wrong at the token
                server.
        """
        now = self._clock.monotonic()
        if self._token and now < self._ends:
            if now >= self._due:
                self._refresh()
            return self._token
        try:
            async with asyncio.timeout(left_s):
                return await asyncio.shield(self._refresh())
        except TimeoutError:
            raise failures.TOKEN_TIMEOUT.error(self._provider) from None

    def rejected(self) -> None:
        """Forget the token: the vendor does not take it any more."""
        self._token = ""

    async def aclose(self) -> None:
        """End a refresh that runs."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._running

    def _refresh(self) -> asyncio.Task[str]:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._exchange(), name="oauth-refresh")
            self._running.add_done_callback(_consume)
        return self._running

    async def _exchange(self) -> str:
        try:
            token, lifetime_s = await self._ask()
        except ServiceError as error:
            self._due = self._clock.monotonic() + _RETRY_S
            log.warning(
                "no new token from the token server",
                extra={"provider": self._provider, "reason": error.reason},
            )
            raise
        now = self._clock.monotonic()
        self._token, self._ends = token, now + lifetime_s
        self._due = now + lifetime_s * (1 - _AHEAD_SHARE)
        return token

    async def _ask(self) -> tuple[str, float]:
        form = {"grant_type": "client_credentials"}
        form |= {"scope": self._config.scope} if self._config.scope else {}
        form |= {"audience": self._config.audience} if self._config.audience else {}
        auth = aiohttp.encode_basic_auth(self._config.client_id, self._secret.token())
        try:
            async with self._session.post(
                self._config.token_url,
                data=form,
                headers={"Accept": "application/json", "Authorization": auth},
                timeout=_TIMEOUT,
                ssl=self._tls,
                allow_redirects=False,
            ) as response:
                content = await response.content.read(_MAX_ANSWER)
                if response.status != 200:
                    raise failures.TOKEN.error(self._provider, http_status=str(response.status))
        except TimeoutError:
            raise failures.TOKEN_TIMEOUT.error(self._provider) from None
        except (aiohttp.ClientError, OSError) as error:
            raise failures.of_exception(self._provider, error) from None
        try:
            answer = load_object(content)
        except AnswerError:
            raise failures.TOKEN.error(self._provider, rule="json") from None
        lifetime = answer.get("expires_in", _DEFAULT_LIFETIME_S)
        token = answer.get("access_token")
        good = isinstance(lifetime, int | float) and lifetime > 0
        if not isinstance(token, str) or not good:
            raise failures.TOKEN.error(self._provider, rule="structure")
        return usable(self._provider, token), float(lifetime)


def _consume(task: asyncio.Task[str]) -> None:
    """A refresh ahead that failed was logged; nobody awaits it."""
    if not task.cancelled():
        task.exception()
