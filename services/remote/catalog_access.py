"""Parts of a provider file: how we show who we are, how much may be asked, what is searched for."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import ssl
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)


class Entry(BaseModel):
    """No unknown keys: a misspelt one must not pass for an absent one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _of_authorities(path: Path) -> Path:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # an SSLError is one
        raise ValueError(f"holds no certificates: {error.strerror or error}") from None
    return path


CaFile = Annotated[Path, AfterValidator(_of_authorities)]
"""Certificates (PEM) of authorities that are trusted instead of the system's."""


class Secret(Entry):
    """Where a secret comes from: exactly one of the two.

    Attributes:
        file: A file, read again when it changes.
        env: An environment variable.
    """

    file: Path | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("name either a file or an environment variable (env)")
        return self


class OAuth2(Entry):
    """Client credentials (RFC 6749, section 4.4), exchanged for tokens that live a while.

    Attributes:
        token_url: Where tokens are given.
        client_id: Who we are there.
        client_secret: How we prove it.
        scope: What we ask for; empty: nothing in particular.
        audience: Which API the token is for, where the server wants to know.
        ca_file: Who signs the server's certificate, where the system does not know.
    """

    token_url: str
    client_id: str
    client_secret: Secret
    scope: str = ""
    audience: str = ""
    ca_file: CaFile | None = None

    @field_validator("token_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        return checked_url(value)


class Token(Entry):
    """Where our token for the vendor comes from: exactly one of the three.

    Attributes:
        file: A file, read again when it changes.
        env: An environment variable.
        oauth2: An exchange, refreshed ahead.
        expires: Day on which it ends, where it does not say so itself; warned of before.
    """

    file: Path | None = None
    env: str | None = None
    oauth2: OAuth2 | None = None
    expires: dt.date | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.file, self.env, self.oauth2].count(None) != 2:
            raise ValueError("name one of: a file, an environment variable (env), oauth2")
        return self


_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Auth(Entry):
    """In which header the token goes.

    Attributes:
        header: Its name.
        scheme: The word before the token; empty: none.
    """

    header: str = "Authorization"
    scheme: str = "Bearer"

    @field_validator("header")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _HEADER_NAME.fullmatch(value):
            raise ValueError("is no name of a header")
        return value


class Share(Entry):
    """How much may be asked in a minute; absent: any amount.

    Attributes:
        requests_per_minute: Calls.
        tokens_per_minute: Tokens in and out.
    """

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None


class Limits(Share):
    """For one model, over all replicas; and of that, for one caller.

    Attributes:
        per_caller: What one caller may have at most.
        weights: While callers compete for the model, each gets its part by its weight, by the
            caller's identity; 1 for who is not named.
    """

    per_caller: Share = Share()
    weights: dict[str, Annotated[float, Field(gt=0, le=1000)]] = Field(default_factory=dict)


def checked_url(value: str, *, plain_http: bool = False) -> str:
    """Return a URL that may be called; raises ValueError."""
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("must be http(s)://host[:port][/path]")
    if url.query or url.fragment or url.username:
        raise ValueError("must not hold a query, a fragment or a user")
    if url.scheme == "http" and not (plain_http or is_loopback(url.hostname)):
        raise ValueError("must be https (or set plain_http: true)")
    return value


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
