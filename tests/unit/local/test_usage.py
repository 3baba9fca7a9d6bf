"""What Triton's counters say about one inference, and its cost."""

from __future__ import annotations

import pytest

from services.local.usage import Counters, Meter, Price, Usage, total


def test_the_latest_inferences_count() -> None:
    """The difference of two looks, not the mean since the start."""
    meter = Meter()
    assert meter.usage is None
    meter.update(Counters(0, 0, 0, 0, 0))
    assert meter.usage is None
    meter.update(Counters(1, 1, 50_000, 9_000_000, 9_000_000))  # the slow first one
    meter.update(Counters(3, 9, 70_000, 13_000_000, 11_000_000))
    assert meter.usage == Usage(queue_us=10, compute_us=2000, busy_ns_per_row=250_000)


def test_without_new_inferences_the_last_usage_stays() -> None:
    """And a reload, which sets the counters back, is no negative time."""
    meter = Meter()
    meter.update(Counters(1, 1, 1000, 2000, 2000))
    first = meter.usage
    meter.update(Counters(1, 1, 1000, 2000, 2000))
    assert meter.usage == first
    meter.update(Counters(0, 0, 0, 0, 0))
    assert meter.usage == first
    meter.update(Counters(1, 1, 7000, 8000, 8000))
    assert meter.usage == Usage(7, 8, 8000)


def test_replicas_are_summed() -> None:
    """Two replicas of one model."""
    assert total([Counters(1, 2, 3, 4, 5), Counters(10, 20, 30, 40, 50)]) == Counters(
        11, 22, 33, 44, 55
    )


@pytest.mark.parametrize(
    ("slots", "rows", "nanos"),
    [(1, 1, 1000), (4, 1, 250), (1, 3, 3000)],
)
def test_cost_is_the_price_of_the_machines_time(slots: int, rows: int, nanos: int) -> None:
    """At 3.6 USD an hour a millisecond costs 1000 billionths of a USD."""
    price = Price(3.6, slots)
    assert price.nanos(Usage(0, 0, 1_000_000), rows) == nanos


def test_a_price_makes_no_inference_free() -> None:
    """Rounding does not lose a cost."""
    assert Price(0.01, 16).nanos(Usage(0, 0, 1), 1) == 1
