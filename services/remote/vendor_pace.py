"""What vendors say about our rate: after "not before", nothing is sent until then."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping

from services.chassis.clock import Clock
from services.remote import failures
from services.remote.catalog import Model, Provider

# Families of headers: OpenAI and those like it, Anthropic, the IETF's draft. {} is what is limited.
_REMAINING = re.compile(
    r"(?:(?P<openai>x-ratelimit-remaining-(?:requests|tokens))"
    r"|(?P<anthropic>anthropic-ratelimit-(?:requests|tokens|input-tokens|output-tokens)-remaining)"
    r"|(?P<ietf>(?:x-)?ratelimit-remaining))$"
)
_DURATION = re.compile(
    r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?$"
)


class Pace:
    """Until when nothing is sent, for each model of a provider: an hour at most.

    Known to this replica only: to ask the state store about it would cost each item of each model a
    look, and what is saved by it is one request of each other replica, which then knows it, too.
    """

    def __init__(self, provider: Provider, clock: Clock) -> None:
        self._provider = provider.name
        self._clock = clock
        self._until: dict[tuple[str, str], float] = {}

    def check(self, model: Model) -> None:
        """Raise ServiceError (VENDOR_RATE_LIMITED, with the time to wait) while we must wait."""
        until = self._until.get((model.name, model.version))
        if until is None:
            return
        left = until - self._clock.monotonic()
        if left > 0:
            error = failures.HTTP[429].error
            raise error(self._provider, retry_after=left, origin="remembered")
        del self._until[model.name, model.version]

    def heard(self, model: Model, status: int, headers: Mapping[str, str]) -> None:
        """Note what an answer's headers say about the next request."""
        now_s = self._clock.unix_us() / 1e6
        wait = exhausted_for_s(headers, now_s)
        if status in (429, 503, 529):
            wait = max(wait, failures.retry_after(headers.get("Retry-After"), now_s) or 0.0)
        self.hold(model, wait)

    def hold(self, model: Model, wait: float) -> None:
        """Send nothing for so many seconds, an hour at most."""
        if wait > 0:
            key = (model.name, model.version)
            until = self._clock.monotonic() + min(wait, failures.LONGEST_WAIT_S)
            # The longest counts: answers that were under way together may disagree.
            self._until[key] = max(until, self._until.get(key, 0.0))


def exhausted_for_s(headers: Mapping[str, str], now_unix_s: float) -> float:
    """Return for how many seconds nothing more is allowed, by rate-limit headers; 0: now it is."""
    wait = 0.0
    if "limit" not in "\n".join(headers).lower():  # as nearly always
        return wait
    lower = {name.lower(): value for name, value in headers.items()}
    for name, value in lower.items():
        found = _REMAINING.match(name)
        if found is None or value.strip() != "0":
            continue
        reset = lower.get(name.replace("remaining", "reset"))
        wait = max(wait, _reset_s(reset, now_unix_s))
    return wait


def _reset_s(value: str | None, now_unix_s: float) -> float:
    """Read a reset: seconds, `6m0s`, `20ms`, or a time by RFC 3339; 0 if it makes no sense."""
    text = (value or "").strip()
    if re.fullmatch(r"\d{1,10}(\.\d+)?", text):
        seconds = float(text)
        return max(0.0, seconds - now_unix_s) if seconds > 1e9 else seconds
    found = _DURATION.match(text)
    if text and found is not None:
        part = {name: float(amount or 0) for name, amount in found.groupdict().items()}
        return part["h"] * 3600 + part["m"] * 60 + part["s"] + part["ms"] / 1000
    try:
        when = dt.datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=dt.UTC)
    return max(0.0, when.timestamp() - now_unix_s)
