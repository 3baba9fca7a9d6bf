"""The price book is dated, and its arithmetic is exact."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.remote.catalog import Model
from services.remote.prices import Price, day_of, guess_tokens, price_on
from services.remote.wire import Usage

BOOK = [
    Price.model_validate({"since": "2026-01-01", "usd_per_million_input_tokens": 3}),
    Price.model_validate({"usd_per_million_input_tokens": 5}),
    Price.model_validate({"since": "2026-07-01", "usd_per_million_input_tokens": 1}),
]


@pytest.mark.parametrize(
    ("day", "usd"), [("2020-01-01", 5), ("2026-01-01", 3), ("2026-06-30", 3), ("2026-07-01", 1)]
)
def test_the_price_of_the_day_counts(day: str, usd: int) -> None:
    """Whatever the order in the file."""
    price = price_on(BOOK, dt.date.fromisoformat(day))
    assert price is not None
    assert price.usd_per_million_input_tokens == usd


def test_before_the_first_price_there_is_none() -> None:
    """No price is not a price of nothing."""
    assert price_on([BOOK[0]], dt.date(2025, 12, 31)) is None


def test_a_day_is_a_day_in_utc() -> None:
    """Also a second before midnight."""
    assert day_of(1_767_225_599_000_000) == dt.date(2025, 12, 31)
    assert day_of(1_767_225_600_000_000) == dt.date(2026, 1, 1)


def test_every_part_counts() -> None:
    """Calls, bytes both ways, fresh and cached tokens in, tokens out."""
    price = Price.model_validate(
        {
            "per_call_nanos_usd": 7, "per_kib_out_nanos_usd": 1024, "usd_per_gb_in": 2,
            "usd_per_million_input_tokens": 2.5, "usd_per_million_cached_tokens": 0.25,
            "usd_per_million_output_tokens": 10,
        }
    )  # fmt: skip
    usage = Usage(input_tokens=100, cached_input_tokens=40, output_tokens=3)
    assert price.nanos(usage, 5, 11) == 7 + 5 + 22 + 60 * 2500 + 40 * 250 + 3 * 10_000


@given(st.integers(0, 10**9), st.decimals(0, 1000, places=6))
def test_no_cost_is_rounded_down(tokens: int, usd: Decimal) -> None:
    """A part of a billionth counts as a whole one, and no more."""
    price = Price.model_validate({"usd_per_million_output_tokens": usd})
    exact = usd * tokens * 1000
    assert 0 <= price.nanos(Usage(output_tokens=tokens), 0, 0) - exact < 1


def test_without_a_price_for_cached_tokens_they_cost_as_the_others() -> None:
    """Nothing is given for free by leaving a line out."""
    price = Price.model_validate({"usd_per_million_input_tokens": 1})
    assert price.nanos(Usage(10, 0, 10), 0, 0) == 10_000


def test_two_prices_from_the_same_day_are_a_mistake() -> None:
    """Which one holds would be an accident."""
    entry = {"name": "x", "datatype": "FP32", "shape": [1]}
    twice = [{"per_call_nanos_usd": 1}, {"per_call_nanos_usd": 2}]
    with pytest.raises(ValidationError, match="same day"):
        Model.model_validate(
            {"name": "m", "version": "1", "inputs": [entry], "outputs": [entry], "price": twice}
        )


def test_a_guess_errs_on_the_high_side() -> None:
    """English has about four bytes to a token."""
    assert guess_tokens(0) == 0
    assert guess_tokens(400) > 100
