"""The price book: what a call costs on a day, in exact billionths of a US dollar."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.remote.wire import Usage

# One US dollar for a million tokens is 1000 billionths for each.
_NANOS_PER_TOKEN = 1000
_NANOS = 10**9
_GB = 10**9


def _exact(value: object) -> object:
    """Take a number from YAML by its decimal digits, not by its binary neighbour."""
    return str(value) if isinstance(value, float) else value


Usd = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, allow_inf_nan=False)]


class Price(BaseModel):
    """What a call costs from a day on. Vendors state token prices for a million of them.

    Attributes:
        since: First day (UTC) on which it holds; absent: always.
        per_call_nanos_usd: For each call, in billionths of a US dollar.
        per_kib_out_nanos_usd: For each 1024 bytes of the body that we send, in proportion.
        usd_per_gb_in: For each 10⁹ bytes of the vendor's answer.
        usd_per_million_input_tokens: For tokens in.
        usd_per_million_cached_tokens: For tokens in that came from the vendor's cache; absent: as
            the others.
        usd_per_million_cache_write_tokens: For tokens in that were written to it; absent: as the
            others, and where there are some the cost is an estimate.
        usd_per_million_output_tokens: For tokens out.
        bulk_share: What part of all that a call in a batch costs: 0.5 is half.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: dt.date = dt.date.min
    per_call_nanos_usd: int = Field(default=0, ge=0)
    per_kib_out_nanos_usd: int = Field(default=0, ge=0)
    usd_per_gb_in: Usd = Decimal(0)
    usd_per_million_input_tokens: Usd = Decimal(0)
    usd_per_million_cached_tokens: Usd | None = None
    usd_per_million_cache_write_tokens: Usd | None = None
    usd_per_million_output_tokens: Usd = Decimal(0)
    bulk_share: Annotated[Decimal, BeforeValidator(_exact), Field(gt=0, le=1)] = Decimal(1)

    @property
    def by_tokens(self) -> bool:
        """Whether tokens are billed: without the vendor's count the cost is an estimate then."""
        return bool(self.usd_per_million_input_tokens or self.usd_per_million_output_tokens)

    def exact(self, usage: Usage) -> bool:
        """Whether a vendor's count and this price make the vendor's own amount."""
        written = self.usd_per_million_cache_write_tokens
        return self.by_tokens and (written is not None or not usage.cache_write_tokens)

    def nanos(self, usage: Usage, bytes_out: int, bytes_in: int, *, bulk: bool = False) -> int:
        """Return the price of a call, perhaps in a batch; a part of a billionth counts as one."""
        cached = self.usd_per_million_cached_tokens
        if cached is None:
            cached = self.usd_per_million_input_tokens
        written = self.usd_per_million_cache_write_tokens
        if written is None:
            written = self.usd_per_million_input_tokens
        of_cache = usage.cached_input_tokens + usage.cache_write_tokens
        fresh = max(0, usage.input_tokens - of_cache)
        total = (
            self.per_call_nanos_usd
            + self.per_kib_out_nanos_usd * bytes_out // 1024
            + self.usd_per_gb_in * _NANOS * bytes_in / _GB
            + self.usd_per_million_input_tokens * _NANOS_PER_TOKEN * fresh
            + cached * _NANOS_PER_TOKEN * usage.cached_input_tokens
            + written * _NANOS_PER_TOKEN * usage.cache_write_tokens
            + self.usd_per_million_output_tokens * _NANOS_PER_TOKEN * usage.output_tokens
        )
        if bulk:
            total = total * self.bulk_share
        whole = int(total)
        return whole + (total != whole)


def price_on(book: list[Price], day: dt.date) -> Price | None:
    """Return the newest price that holds on a day; None if none does yet."""
    fitting = [price for price in book if price.since <= day]
    return max(fitting, key=lambda price: price.since, default=None)


def day_of(unix_us: int) -> dt.date:
    """Return the day in UTC."""
    return dt.datetime.fromtimestamp(unix_us / 1e6, dt.UTC).date()


def guess_tokens(size: int) -> int:
    """Return about how many tokens a text of so many bytes has; errs on the high side."""
    return -(-size // 3)
