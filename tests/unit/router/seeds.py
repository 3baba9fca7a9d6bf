"""Many simulated stories on all cores: for the tests by the thousand, for `make chaos` by more."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.unit.router.simulation import simulate

_PART = 250


def broken_in(first: int, count: int) -> list[tuple[int, list[str]]]:
    """Live so many stories from a seed on; return the seeds that broke something, and what."""
    logging.disable(logging.CRITICAL)  # thousands of outages need no lines
    try:
        found = []
        for seed in range(first, first + count):
            try:
                broken = simulate(seed).broken
            except Exception as error:  # noqa: BLE001 - a story that can't be told is broken, too
                broken = [f"{type(error).__name__}: {error}"]
            if broken:
                found.append((seed, broken))
        return found
    finally:
        logging.disable(logging.NOTSET)


def all_broken(first: int, count: int) -> Iterator[tuple[int, list[str]]]:
    """Live stories on all cores; yield as `broken_in` returns."""
    starts = range(first, first + count, _PART)
    counts = [min(_PART, first + count - start) for start in starts]
    workers = min(len(counts), os.cpu_count() or 1)
    if workers < 2:
        for start, part in zip(starts, counts, strict=True):
            yield from broken_in(start, part)
        return
    # Not forked: this process may have threads, and what they hold would be held for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for found in pool.map(broken_in, starts, counts):
            yield from found
