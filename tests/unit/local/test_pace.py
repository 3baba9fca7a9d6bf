"""The pace of a model: how many requests are worth having in Triton at once."""

from __future__ import annotations

import heapq
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.local.pace import Pace


def served(pace: Pace, *, service_s: float, instances: int, seconds: float) -> tuple[float, float]:
    """Offer more than a model of so many instances can do, through a pace, first come first served.

    Returns:
        What was served a second in the second half, and the mean time in the model then.
    """
    now, began, done, total = 0.0, deque[float](), 0, 0.0
    free = [0.0] * instances
    ends: list[tuple[float, float]] = []
    while now < seconds:
        while len(began) < pace.limit:
            pace.waits()
            start = heapq.heappop(free)
            end = max(start, now) + service_s
            heapq.heappush(free, end)
            heapq.heappush(ends, (end, now))
            began.append(now)
        now, since = heapq.heappop(ends)
        began.popleft()
        pace.took(now, now - since)
        if now >= seconds / 2:
            done += 1
            total += now - since
    return done / (seconds / 2), total / done


@pytest.mark.parametrize("instances", [1, 4, 16])
@pytest.mark.parametrize("service_s", [0.0005, 0.02, 0.3])
def test_a_model_is_busy_and_hardly_a_queue_is_before_it(service_s: float, instances: int) -> None:
    """Whatever it takes and however many it does at once: all its capacity, a short wait."""
    seconds = max(2.0, 100 * service_s)
    rate, mean = served(Pace(64), service_s=service_s, instances=instances, seconds=seconds)
    assert rate >= 0.95 * instances / service_s
    assert mean <= max(0.05, 2 * service_s) * 2


def test_a_model_that_became_slower_keeps_its_capacity() -> None:
    """What was fast and is slow now is not held at the lowest limit for ever."""
    pace = Pace(64)
    served(pace, service_s=0.04, instances=4, seconds=5)
    rate, _ = served(pace, service_s=0.3, instances=4, seconds=120)
    assert rate >= 0.9 * 4 / 0.3


def test_without_a_queue_at_the_gate_nothing_grows() -> None:
    """That few are fast does not show that more would be."""
    pace = Pace(64, initial=8)
    for number in range(1000):
        pace.took(number * 0.02, 0.001)
    assert pace.limit == 8


@settings(max_examples=200, deadline=None)
@given(
    maximum=st.integers(1, 64),
    turns=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 5), st.booleans()), max_size=200),
)
def test_the_limit_stays_within_its_bounds(
    maximum: int, turns: list[tuple[float, float, bool]]
) -> None:
    """Never below what keeps a model busy, never above the maximum."""
    pace, now = Pace(maximum), 0.0
    for passed, seconds, waited in turns:
        now += passed
        if waited:
            pace.waits()
        pace.took(now, seconds)
        assert min(2, maximum) <= pace.limit <= maximum
