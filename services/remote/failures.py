"""One table: what can go wrong at a vendor, and what the mesh says about it.

A vendor's own words are never passed on: they may quote the input.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import aiohttp

from services.chassis.errors import (
    AbortedError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
    UnimplementedError,
)

LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Failure:
    """One row: the error class (its gRPC code), the stable reason, and a sentence."""

    kind: type[ServiceError]
    reason: str
    text: str

    def error(
        self, provider: str, *, retry_after: float | None = None, **metadata: str
    ) -> ServiceError:
        """Return the error of this row. `metadata` holds names and codes, never values."""
        return self.kind(
            self.reason,
            f"vendor {provider}: {self.text}",
            metadata={"provider": provider, **metadata},
            retry_after=retry_after,
        )


# By HTTP status. A vendor's 401 and 403 are about OUR token at the vendor, not about the caller's
# identity, so they must not become UNAUTHENTICATED or PERMISSION_DENIED. A vendor's 5xx is not
# our fault, so it must not become INTERNAL.
HTTP: dict[int, Failure] = {
    400: Failure(InvalidArgumentError, "VENDOR_REJECTED_INPUT", "it rejected the request"),
    401: Failure(FailedPreconditionError, "VENDOR_TOKEN_REJECTED", "it rejected our token"),
    403: Failure(FailedPreconditionError, "VENDOR_FORBIDDEN", "our token may not use this model"),
    404: Failure(NotFoundError, "VENDOR_MODEL_UNKNOWN", "it does not know the model"),
    408: Failure(UnavailableError, "VENDOR_REQUEST_TIMEOUT", "it gave up waiting for our request"),
    409: Failure(AbortedError, "VENDOR_CONFLICT", "the request conflicts with another one"),
    413: Failure(ResourceExhaustedError, "VENDOR_TOO_LARGE", "the request is too large for it"),
    422: Failure(InvalidArgumentError, "VENDOR_UNPROCESSABLE", "it can't process this input"),
    429: Failure(ResourceExhaustedError, "VENDOR_RATE_LIMITED", "it limits our rate"),
    500: Failure(UnavailableError, "VENDOR_ERROR", "it failed"),
    501: Failure(UnimplementedError, "VENDOR_NOT_IMPLEMENTED", "it does not offer this"),
    502: Failure(UnavailableError, "VENDOR_BAD_GATEWAY", "its gateway got no good answer"),
    503: Failure(UnavailableError, "VENDOR_UNAVAILABLE", "it is not available"),
    504: Failure(DeadlineExceededError, "VENDOR_GATEWAY_TIMEOUT", "its gateway ran out of time"),
    529: Failure(UnavailableError, "VENDOR_OVERLOADED", "it is overloaded"),
}
_REDIRECT = Failure(FailedPreconditionError, "VENDOR_REDIRECT", "it redirects; we don't follow")
REFUSED_REQUEST = Failure(FailedPreconditionError, "VENDOR_REFUSED", "it refused the request")
_OTHER_5XX = HTTP[500]

# An answer with status 200 that is not one. The `rule` in the metadata says what it breaks.
ANSWER_INVALID = Failure(
    UnavailableError, "VENDOR_ANSWER_INVALID", "its answer breaks the protocol"
)
ANSWER_IS_ERROR = Failure(
    UnavailableError, "VENDOR_ERROR_INSIDE", "it answered 200 with an error inside"
)
ANSWER_CUT = Failure(
    FailedPreconditionError, "VENDOR_ANSWER_CUT", "its answer was cut at the length limit"
)
CUT_STREAM = Failure(UnavailableError, "VENDOR_STREAM_CUT", "its stream ended before its end")
QUOTA_SPENT = Failure(
    FailedPreconditionError, "VENDOR_QUOTA_SPENT", "our account there has nothing left"
)
OUTPUT_MISMATCH = Failure(
    UnavailableError, "VENDOR_OUTPUT_MISMATCH", "its outputs don't fit the catalog"
)

REFUSED = Failure(UnavailableError, "VENDOR_UNAVAILABLE", "it can't be connected to")
DNS = Failure(UnavailableError, "VENDOR_DNS_FAILED", "its name can't be resolved")
TLS = Failure(UnavailableError, "VENDOR_TLS_FAILED", "no TLS connection that we trust")
CONNECT_TIMEOUT = Failure(UnavailableError, "VENDOR_CONNECT_TIMEOUT", "connecting took too long")
TIMEOUT = Failure(DeadlineExceededError, "VENDOR_TIMEOUT", "no answer in the time that was left")
SILENT = Failure(DeadlineExceededError, "VENDOR_SILENT", "it fell silent")
LOST = Failure(UnavailableError, "VENDOR_CONNECTION_LOST", "the connection broke")
TOKEN = Failure(FailedPreconditionError, "VENDOR_TOKEN_MISSING", "our token for it is not there")
TOKEN_TIMEOUT = Failure(
    DeadlineExceededError, "VENDOR_TOKEN_TIMEOUT", "its token server gave no token in time"
)

# By exception, the first that fits: subclasses stand before their bases.
TRANSPORT: tuple[tuple[type[BaseException], Failure], ...] = (
    (aiohttp.ClientConnectorDNSError, DNS),
    (aiohttp.ClientSSLError, TLS),
    (aiohttp.ConnectionTimeoutError, CONNECT_TIMEOUT),
    (aiohttp.SocketTimeoutError, SILENT),
    (TimeoutError, TIMEOUT),
    (aiohttp.ClientConnectorError, REFUSED),
    (aiohttp.ClientPayloadError, LOST),
    (aiohttp.ServerDisconnectedError, LOST),
    (aiohttp.ClientResponseError, ANSWER_INVALID),
    (aiohttp.ClientConnectionError, LOST),
    (OSError, LOST),
    (aiohttp.ClientError, ANSWER_INVALID),
)


def of_status(
    provider: str, status: int, headers: Mapping[str, str], now_unix_s: float
) -> ServiceError:
    """Return the error for an HTTP status other than 200."""
    failure = HTTP.get(status)
    if failure is None:
        if 300 <= status < 400:
            failure = _REDIRECT
        elif 400 <= status < 500:
            failure = REFUSED_REQUEST
        elif status >= 500:
            failure = _OTHER_5XX
        else:
            failure = ANSWER_INVALID
    wait = None
    if status in (429, 503, 529):
        wait = retry_after(headers.get("Retry-After"), now_unix_s)
    return failure.error(provider, retry_after=wait, http_status=str(status))


def of_exception(provider: str, error: BaseException) -> ServiceError:
    """Return the error for what the HTTP client raised."""
    for kind, failure in TRANSPORT:
        if isinstance(error, kind):
            return failure.error(provider, cause=type(error).__name__)
    raise error


def retry_after(value: str | None, now_unix_s: float) -> float | None:
    """Read a `Retry-After` header, either kind: seconds, or an HTTP date.

    Returns:
        Seconds to wait, from 0 to an hour; None if the header is absent or makes no sense.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_WAIT_S)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=dt.UTC)
    return min(max(when.timestamp() - now_unix_s, 0.0), LONGEST_WAIT_S)
