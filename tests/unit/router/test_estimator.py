"""The estimator tells quantiles of the recent past, and says nothing that it does not know."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.estimator import (
    SIZE_CLASSES,
    EstimatorConfig,
    LatencyEstimator,
    size_class,
)


@given(st.lists(st.floats(60e-6, 500), min_size=10, max_size=200))
def test_quantiles_are_within_6_percent_of_the_truth(seconds: list[float]) -> None:
    """Without decay, the answer lies beside a real observation of the right rank."""
    estimator = LatencyEstimator()
    for value in seconds:
        estimator.observe(0.0, 0, value)
    ordered = sorted(seconds)
    for share, got in ((0.5, estimator.p50(0.0, 0)), (0.95, estimator.p95(0.0, 0))):
        assert got is not None
        rank = share * len(ordered)
        near = {ordered[max(0, math.ceil(rank) - 1)], ordered[min(len(ordered) - 1, int(rank))]}
        assert any(abs(got / value - 1) < 0.06 for value in near)


def test_silent_until_it_has_seen_enough() -> None:
    """Nine observations are rumours, ten are an estimate; each size class for itself."""
    estimator = LatencyEstimator()
    for i in range(9):
        estimator.observe(i, 2, 0.1)
    assert estimator.p95(9, 2) is None
    estimator.observe(9, 2, 0.1)
    assert estimator.p95(9, 2) == pytest.approx(0.1, rel=0.06)
    assert estimator.p95(9, 1) is None


def test_rare_calls_are_an_estimate_too() -> None:
    """Counting is not decayed: one call in ten seconds is enough to speak."""
    estimator = LatencyEstimator()
    for i in range(10):
        estimator.observe(i * 10.0, 0, 0.2)
    assert estimator.p50(100.0, 0) == pytest.approx(0.2, rel=0.06)


def test_forgets_what_is_stale() -> None:
    """Two minutes without a call: unknown, and it must learn from the start."""
    estimator = LatencyEstimator()
    for _ in range(50):
        estimator.observe(0.0, 0, 0.2)
    assert estimator.p50(120.0, 0) is not None
    assert estimator.p50(120.1, 0) is None
    estimator.observe(121.0, 0, 0.01)
    assert estimator.p50(121.0, 0) is None


def test_follows_a_change_within_two_half_lives() -> None:
    """After 30 s at 100 ms, the median no longer remembers five minutes at 10 ms."""
    estimator = LatencyEstimator()
    for i in range(300 * 2):
        estimator.observe(i / 2, 0, 0.01)
    for i in range(60):
        estimator.observe(300 + i / 2, 0, 0.1)
    assert estimator.p50(330, 0) == pytest.approx(0.1, rel=0.06)


def test_weights_stay_finite_for_a_month() -> None:
    """Growing weights are made small again before they lose digits."""
    estimator = LatencyEstimator()
    for i in range(30 * 24 * 60):
        estimator.observe(i * 60.0, 0, 0.05 if i % 2 else 0.06)
    got = estimator.p50(30 * 24 * 3600.0, 0)
    assert got is not None
    assert 0.045 < got < 0.065


def test_a_lognormal_service_is_described() -> None:
    """The p95 of a skewed distribution is its own, not a multiple of the median."""
    chance = random.Random(3)
    estimator = LatencyEstimator()
    values = [chance.lognormvariate(math.log(0.02), 0.8) for _ in range(5000)]
    for i, value in enumerate(values):
        estimator.observe(i / 5000, 0, value)
    assert estimator.p95(1.0, 0) == pytest.approx(statistics.quantiles(values, n=20)[18], rel=0.1)


def test_quantiles_are_computed_again_at_most_so_often() -> None:
    """Planning is cheap: between two refreshes the last answer stands."""
    estimator = LatencyEstimator(EstimatorConfig(refresh_s=1.0))
    for _ in range(10):
        estimator.observe(0.0, 0, 0.01)
    first = estimator.p50(0.0, 0)
    for _ in range(100):
        estimator.observe(0.5, 0, 1.0)
    assert estimator.p50(0.9, 0) == first
    assert estimator.p50(1.0, 0) == pytest.approx(1.0, rel=0.06)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_nonsense_is_ignored(seconds: float) -> None:
    """A clock that went wrong does not poison the estimate."""
    estimator = LatencyEstimator()
    for _ in range(20):
        estimator.observe(0.0, 0, seconds)
    assert estimator.p50(0.0, 0) is None


@given(seconds=st.floats(0, 1e300), cls=st.integers(-5, 50))
def test_any_latency_and_any_class_are_taken(seconds: float, cls: int) -> None:
    """Extremes fall into the outermost buckets and classes."""
    estimator = LatencyEstimator(EstimatorConfig(minimum_count=1))
    estimator.observe(0.0, cls, seconds)
    got = estimator.p95(0.0, cls)
    assert got is not None
    assert 0 < got < 700


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 0), (1, 0), (1024, 0), (1025, 1), (4096, 1), (4097, 2), (1 << 20, 5), (1 << 40, 7)],
)
def test_size_classes_grow_by_four(size: int, expected: int) -> None:
    """1 KiB, 4 KiB, 16 KiB, ... and everything large is the last."""
    assert size_class(size) == expected
    assert expected < SIZE_CLASSES


def test_hedge_waits_for_the_p95_and_only_where_it_can_help() -> None:
    """After the p95 if the other's median still fits in the time left; never on a guess."""
    estimator = LatencyEstimator()
    assert estimator.hedge_delay(0.0, 0, time_left_s=9.0, other_p50_s=0.01) is None
    for _ in range(20):
        estimator.observe(0.0, 0, 0.1)
    delay = estimator.hedge_delay(0.0, 0, time_left_s=0.2, other_p50_s=0.05)
    assert delay == pytest.approx(0.1, rel=0.06)
    assert estimator.hedge_delay(0.0, 0, time_left_s=0.12, other_p50_s=0.05) is None
    assert estimator.hedge_delay(0.0, 0, time_left_s=9.0, other_p50_s=None) is None


def test_hedge_has_a_floor() -> None:
    """A candidate that answers in microseconds is not asked twice because of one pause."""
    estimator = LatencyEstimator()
    for _ in range(20):
        estimator.observe(0.0, 0, 0.0001)
    assert estimator.hedge_delay(0.0, 0, time_left_s=1.0, other_p50_s=0.001) == 0.005


def test_callers_in_a_hurry_do_not_make_a_candidate_fast() -> None:
    """Attempts given up after 2 ms say nothing about one that takes 100 ms; those after 1 s do."""
    estimator = LatencyEstimator(EstimatorConfig(refresh_s=0.0))
    for _ in range(20):
        estimator.observe(0.0, 0, 0.1)
    for _ in range(1000):
        estimator.observe(0.0, 0, 0.002, censored=True)
    assert estimator.p50(0.0, 0) == pytest.approx(0.1, rel=0.06)
    for _ in range(50):
        estimator.observe(0.0, 0, 1.0, censored=True)
    assert estimator.p95(0.0, 0) == pytest.approx(1.0, rel=0.06)


def test_what_always_times_out_is_known_to_be_slow() -> None:
    """Without any answer, the time that was waited is a lower bound, and better than nothing."""
    estimator = LatencyEstimator()
    for _ in range(20):
        estimator.observe(0.0, 0, 0.3, censored=True)
    assert estimator.p95(0.0, 0) == pytest.approx(0.3, rel=0.06)


def test_a_config_that_never_speaks_is_refused() -> None:
    """Configuration mistakes are found at load."""
    with pytest.raises(ValueError, match="estimator:"):
        EstimatorConfig(half_life_s=0)
