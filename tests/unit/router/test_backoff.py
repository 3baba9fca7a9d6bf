"""Retries are spread, listen to the server, and end before the deadline."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.backoff import BackoffConfig, retry_delay

CONFIG = BackoffConfig(base_s=0.1, cap_s=1.0)


@given(retry=st.integers(0, 5000), seed=st.integers(0, 1000))
def test_full_jitter_stays_under_a_doubling_capped_ceiling(retry: int, seed: int) -> None:
    """0 <= wait < min(cap, base * 2^retry), also for absurd retry numbers."""
    delay = retry_delay(CONFIG, retry, random.Random(seed).random, time_left_s=100)
    assert delay is not None
    assert 0 <= delay < min(1.0, 0.1 * 2 ** min(retry, 10)) + 1e-12


def test_full_jitter_fills_the_whole_range() -> None:
    """Waits are uniform from zero: the mean is half of the ceiling."""
    chance = random.Random(7)
    delays = [retry_delay(CONFIG, 2, chance.random, time_left_s=100) for _ in range(4000)]
    assert sum(d or 0.0 for d in delays) / 4000 == pytest.approx(0.2, rel=0.05)
    assert min(d or 0.0 for d in delays) < 0.01


@given(
    retry=st.integers(0, 10),
    chance=st.floats(0, 0.999),
    left=st.floats(0, 3),
    needed=st.floats(0, 1),
    pushback=st.none() | st.floats(0, 3),
)
def test_no_retry_that_cannot_finish(
    retry: int, chance: float, left: float, needed: float, pushback: float | None
) -> None:
    """What is returned leaves room for the attempt and is not before the server's time."""
    delay = retry_delay(
        CONFIG, retry, lambda: chance, time_left_s=left, needed_s=needed, pushback_s=pushback
    )
    if delay is not None:
        assert delay + needed < left
        assert delay >= (pushback or 0)


@pytest.mark.parametrize("pushback", [-1.0, -0.001, math.nan, math.inf])
def test_a_server_that_wants_no_retry_gets_none(pushback: float) -> None:
    """Negative or unreadable pushback means: don't."""
    assert retry_delay(CONFIG, 0, lambda: 0.0, time_left_s=1e9, pushback_s=pushback) is None


def test_pushback_is_jittered_too() -> None:
    """Callers that were all told the same second don't all come back in it."""
    delays = {
        retry_delay(CONFIG, 0, partial(float, c), time_left_s=100, pushback_s=2.0)
        for c in (0.0, 0.4, 0.8)
    }
    assert len(delays) == 3


def test_a_config_without_a_wait_is_refused() -> None:
    """A base of zero would retry at once for ever."""
    with pytest.raises(ValueError, match="backoff:"):
        BackoffConfig(base_s=0.0)
