"""The whole dispatcher in simulated time: ten thousand worlds that fail by seed.

TWINPATH_SEEDS sets how many (`make chaos` takes 100,000), TWINPATH_FIRST_SEED where to begin.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.unit.router.seeds import all_broken
from tests.unit.router.simulation import simulate

SEEDS = int(os.environ.get("TWINPATH_SEEDS", "10000"))
FIRST = int(os.environ.get("TWINPATH_FIRST_SEED", "0"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of outages need no lines in the log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(0)
def test_whatever_fails_the_invariants_hold() -> None:
    """Policy, one effect, records, meters, deadlines and permits hold in each seed's world."""
    for seed, broken in all_broken(FIRST, SEEDS):
        pytest.fail(f"seed {seed}: {broken}\n{again(seed)}")


def again(seed: int) -> str:
    """The command that repeats a seed's story."""
    return (
        f"repeat: TWINPATH_FIRST_SEED={seed} TWINPATH_SEEDS=1 "
        "python -m pytest tests/unit/router/test_simulation.py -k invariants"
    )


@pytest.mark.parametrize("seed", range(50))
def test_one_seed_is_one_story(seed: int) -> None:
    """The same seed gives the same attempts at the same times, to the microsecond."""
    assert simulate(seed).trace == simulate(seed).trace


def test_the_stories_differ() -> None:
    """Seeds are not all one story: answers, fallbacks, refusals, time-outs and departures occur."""
    lines = [line for seed in range(200) for line in simulate(seed).trace]
    for what in ("diabetes_small", "diabetes_large", "NO_CANDIDATE", "DEADLINE", "LEFT"):
        assert any(what in line for line in lines), what
