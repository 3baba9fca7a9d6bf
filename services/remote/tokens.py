"""Our tokens at the vendors. They go into one header, and nowhere else."""

from __future__ import annotations

import os

from services.chassis.errors import ServiceError
from services.chassis.identity import TokenFile
from services.remote import failures
from services.remote.catalog import Provider


class TokenSource:
    """A provider's token, from its file (read again when it changes) or the environment."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._file = TokenFile(provider.token.file) if provider.token.file else None

    def token(self) -> str:
        """Return the token; raises ServiceError (VENDOR_TOKEN_MISSING) if there is none."""
        try:
            token = self._file.token() if self._file else os.environ[self._provider.token.env or ""]
        except (ServiceError, KeyError):
            raise self._missing() from None
        token = token.strip()
        if not token or not token.isascii() or not token.isprintable():
            raise self._missing()
        return token

    def _missing(self) -> ServiceError:
        return failures.TOKEN.error(self._provider.name)
