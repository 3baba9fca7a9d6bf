"""The headers of a request to a vendor: who we are, beside what belongs to the body."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping

import aiohttp
from yarl import URL

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError
from services.remote import meters
from services.remote.catalog import Model, Provider
from services.remote.catalog_access import Auth, Token
from services.remote.oauth import ClientCredentials
from services.remote.provider import Dialect
from services.remote.tokens import TokenSource, expiry_of
from services.remote.wire import Body

_WARN_BEFORE_S = 7 * 86_400.0
_WARN_EVERY_S = 86_400.0
log = logging.getLogger(__name__)


class Credentials:
    """One provider's tokens, and those of its models that have their own.

    A dialect with `auth` names another header than `Authorization`; one with `sign` writes the
    headers itself, from the whole request.
    """

    def __init__(
        self,
        provider: Provider,
        dialect: Dialect | None,
        clock: Clock,
        session: aiohttp.ClientSession,
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._auth: Auth = provider.auth or getattr(dialect, "auth", None) or Auth()
        self._sign = getattr(dialect, "sign", None)
        self._oauth: list[ClientCredentials] = []
        self._warned_at: dict[str, float] = {}
        own = {model.name: model.token for model in provider.models if model.token}
        self._stated: dict[str, dt.date | None] = {"": provider.token.expires}
        self._stated |= {name: token.expires for name, token in own.items()}
        self._sources = {"": self._source(provider.token, session)}
        self._sources |= {name: self._source(token, session) for name, token in own.items()}

    def _source(
        self, token: Token, session: aiohttp.ClientSession
    ) -> TokenSource | ClientCredentials:
        if token.oauth2 is None:
            return TokenSource(self._provider.name, token)
        client = ClientCredentials(self._provider.name, token.oauth2, self._clock, session)
        self._oauth.append(client)
        return client

    async def headers(
        self, model: Model | None, body: Body, url: URL, left_s: float
    ) -> Mapping[str, str]:
        """Return all headers of a request, within `left_s` seconds.

        Raises:
            ServiceError: There is no token.
        """
        token = await self.token(model, left_s)
        headers = {
            **self._provider.headers,
            **body.headers,
            "Accept-Encoding": "identity",  # bytes are metered and bounded as they come
            "User-Agent": "twinpath",
        }
        if self._sign is not None:
            signed: Mapping[str, str] = self._sign(body, url, headers, token)
            return signed
        name, value = self.shown(token)
        headers[name] = value
        return headers

    async def token(self, model: Model | None, left_s: float) -> str:
        """Return the token for a model, within `left_s` seconds; None: for the provider itself.

        Raises:
            ServiceError: There is none.
        """
        source = self._of(model)
        return source.token() if isinstance(source, TokenSource) else await source.token(left_s)

    def shown(self, token: str) -> tuple[str, str]:
        """Return the header that shows a token: its name and its value."""
        scheme = f"{self._auth.scheme} " if self._auth.scheme else ""
        return self._auth.header, scheme + token

    def rejected(self, model: Model) -> None:
        """The vendor does not take the token: one from an exchange is exchanged again."""
        source = self._of(model)
        if isinstance(source, ClientCredentials):
            source.rejected()

    def watch_expiry(self) -> None:
        """Publish when each token ends; warn, once a day, of one that ends within a week."""
        for name, source in self._sources.items():
            if not isinstance(source, TokenSource):
                continue
            try:
                ends = expiry_of(source.token(), self._stated[name])
            except ServiceError:
                continue  # said by whatever needs the token
            if ends is None:
                continue
            meters.TOKEN_EXPIRES.labels(self._provider.name, name).set(ends)
            now = self._clock.unix_us() / 1e6
            due = self._warned_at.get(name, float("-inf")) + _WARN_EVERY_S
            if ends - now < _WARN_BEFORE_S and now >= due:
                self._warned_at[name] = now
                log.warning(
                    "our token for a vendor ends soon",
                    extra={
                        "provider": self._provider.name,
                        "model": name,
                        "hours_left": round((ends - now) / 3600, 1),
                    },
                )

    async def aclose(self) -> None:
        """End refreshes that run."""
        for client in self._oauth:
            await client.aclose()

    def _of(self, model: Model | None) -> TokenSource | ClientCredentials:
        return self._sources.get(model.name if model else "", self._sources[""])
