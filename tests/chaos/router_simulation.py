"""The router's simulated worlds by the hundred thousand, on all cores.

    python -m tests.chaos.router_simulation

TWINPATH_SEEDS sets how many (100,000), TWINPATH_FIRST_SEED where to begin. Prints each broken
seed with the command that repeats it; exits with 1 if there is one.
"""

from __future__ import annotations

import os
import sys
import time

from tests.unit.router.seeds import all_broken


def main() -> int:
    """Live all seeds."""
    seeds = int(os.environ.get("TWINPATH_SEEDS", "100000"))
    first = int(os.environ.get("TWINPATH_FIRST_SEED", "0"))
    started = time.perf_counter()
    bad = 0
    for seed, broken in all_broken(first, seeds):
        bad += 1
        repeat = f"TWINPATH_FIRST_SEED={seed} TWINPATH_SEEDS=1"
        sys.stdout.write(f"seed {seed}: {'; '.join(broken)}\n")
        sys.stdout.write(f"  repeat: {repeat} python -m tests.chaos.router_simulation\n")
    took = time.perf_counter() - started
    sys.stdout.write(f"{seeds} seeds, {bad} broken, {took:.0f} s\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
