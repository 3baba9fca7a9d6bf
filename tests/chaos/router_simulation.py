"""The router's simulated worlds by the hundred thousand, on all cores.

    python -m tests.chaos.router_simulation

TWINPATH_SEEDS sets how many (100,000), TWINPATH_FIRST_SEED where to begin. Prints each broken
seed with the command that repeats it; exits with 1 if there is one.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.unit.router.simulation import simulate

_PART = 500


def live(first: int, count: int) -> list[tuple[int, list[str]]]:
    """Live some seeds; return those that broke something."""
    logging.disable(logging.CRITICAL)
    found = []
    for seed in range(first, first + count):
        try:
            broken = simulate(seed).broken
        except Exception as error:  # noqa: BLE001 - a story that can't be told is broken, too
            broken = [f"{type(error).__name__}: {error}"]
        if broken:
            found.append((seed, broken))
    return found


def main() -> int:
    """Live all seeds."""
    seeds = int(os.environ.get("TWINPATH_SEEDS", "100000"))
    first = int(os.environ.get("TWINPATH_FIRST_SEED", "0"))
    started = time.perf_counter()
    bad = 0
    with ProcessPoolExecutor() as pool:
        starts = range(first, first + seeds, _PART)
        counts = [min(_PART, first + seeds - start) for start in starts]
        for found in pool.map(live, starts, counts):
            for seed, broken in found:
                bad += 1
                repeat = f"TWINPATH_FIRST_SEED={seed} TWINPATH_SEEDS=1"
                sys.stdout.write(f"seed {seed}: {'; '.join(broken)}\n")
                sys.stdout.write(f"  repeat: {repeat} python -m tests.chaos.router_simulation\n")
    took = time.perf_counter() - started
    sys.stdout.write(f"{seeds} seeds, {bad} broken, {took:.0f} s\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
