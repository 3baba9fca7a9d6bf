"""Our tokens at the vendors. They go into one header, and nowhere else."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import os

from services.chassis.errors import ServiceError
from services.chassis.identity import TokenFile
from services.remote import failures
from services.remote.catalog_access import Secret, Token


class TokenSource:
    """A secret from its file (read again when it changes) or the environment.

    Args:
        provider: The vendor's name, for the error.
        source: Where it comes from.
    """

    def __init__(self, provider: str, source: Token | Secret) -> None:
        self._provider = provider
        self._env = source.env or ""
        self._file = TokenFile(source.file) if source.file else None

    def token(self) -> str:
        """Return the token; raises ServiceError (VENDOR_TOKEN_MISSING) if there is none."""
        try:
            token = self._file.token() if self._file else os.environ[self._env]
        except (ServiceError, KeyError):
            raise failures.TOKEN.error(self._provider) from None
        return usable(self._provider, token)


def usable(provider: str, token: str) -> str:
    """Return a token that a header can hold; raises ServiceError (VENDOR_TOKEN_MISSING)."""
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise failures.TOKEN.error(provider)
    return token


def expiry_of(token: str, stated: dt.date | None) -> float | None:
    """Return when a token ends, in seconds since 1970-01-01 UTC; None if nothing says so.

    A JSON web token says so itself (its signature is the vendor's business); for others the
    provider file may state a day.
    """
    parts = token.split(".")
    if len(parts) == 3:
        try:
            padded = parts[1] + "=" * (-len(parts[1]) % 4)
            expiry = json.loads(base64.urlsafe_b64decode(padded)).get("exp")
        except (ValueError, binascii.Error, AttributeError):
            expiry = None
        if isinstance(expiry, int | float) and 0 < expiry < 2**40:
            return float(expiry)
    if stated is None:
        return None
    return dt.datetime.combine(stated, dt.time(), dt.UTC).timestamp()
