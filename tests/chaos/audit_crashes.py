"""The audit log on simulated disks, at length: crash points, failed syncs, mutations.

`python -m tests.chaos.audit_crashes` prints the table; every run is named by its seed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time

from services.audit.verify import verify_log
from tests.unit.audit import mutations as mu
from tests.unit.audit.crashes import run_to_crash
from tests.unit.audit.test_group_commit import one_faulty_run


def crash_points(count: int, seed: int) -> str:
    """Crash a disk that drops, tears and reorders unsynced writes, at so many points."""
    crashes = acknowledged = 0
    while crashes < count:
        kept, here = run_to_crash(seed)
        crashes, acknowledged, seed = crashes + here, acknowledged + kept, seed + 1
    return f"{crashes} crash points, {acknowledged} acknowledged, 0 missing"


def failed_syncs(count: int, seed: int) -> str:
    """Fail an operation with EIO or ENOSPC, so many times."""
    for at in range(seed, seed + count):
        asyncio.run(one_faulty_run(at))
    return f"{count} faults (EIO, ENOSPC), 0 acknowledged after a failed sync, 0 missing"


def mutations(count: int, seed: int) -> str:
    """Damage a log in so many ways, and have all of them found."""
    log = mu.build_log()
    keys = [mu.SIGNER.verifier]
    witness = bytes(log.files["checkpoints"].seen).decode()
    last = witness[witness.rfind(mu.ORIGIN + "\n50\n") :].removesuffix("\n")
    pristine = {name: bytes(file.seen) for name, file in log.files.items()}
    done = 0
    while done < count:
        kind = mu.KINDS[seed % len(mu.KINDS)]
        damaged = mu.mutate(log, kind, random.Random(seed))
        seed += 1
        if {name: bytes(file.seen) for name, file in damaged.files.items()} == pristine:
            continue
        report = verify_log(damaged, keys, witnessed=[last])
        assert not report.ok, f"{kind}, seed {seed - 1} was not found"
        done += 1
    return f"{done} mutations ({', '.join(mu.KINDS)}), {done} found"


def main() -> None:
    """Run all three and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crashes", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for run, count in (
        (crash_points, given.crashes),
        (failed_syncs, given.faults),
        (mutations, given.mutations),
    ):
        start = time.monotonic()
        line = run(count, given.seed)
        print(f"{line}  ({time.monotonic() - start:.0f} s)", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
