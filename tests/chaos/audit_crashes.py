"""One fault on a simulated disk, or one piece of damage, named by its seed. Used by `make chaos`.

Each function returns what it counted, and raises AssertionError when a promise was broken.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from functools import cache

from services.audit.verify import verify_log
from tests.unit.audit import mutations as mu
from tests.unit.audit import two_journals
from tests.unit.audit.crashes import run_retention_to_crash, run_to_crash
from tests.unit.audit.simfs import SimFileSystem
from tests.unit.audit.test_group_commit import one_faulty_run


def crash(seed: int) -> Counter[str]:
    """Crash disks that drop, tear and reorder unsynced writes while records are appended.

    By turns one journal alone, and the ledger over its two: records and their payloads.
    """
    if seed % 2:
        kept, crashes = asyncio.run(two_journals.crash_run(seed))
    else:
        kept, crashes = run_to_crash(seed)
    return Counter(times=crashes, acknowledged=kept)


def crash_in_retention(seed: int) -> Counter[str]:
    """The same while payloads are appended and removed."""
    kept, crashes = run_retention_to_crash(seed)
    return Counter(times=crashes, acknowledged=kept)


def failed_operation(seed: int) -> Counter[str]:
    """Fail operations with EIO or ENOSPC, by turns as above."""
    run = two_journals.faulty_run if seed % 2 else one_faulty_run
    return Counter(times=1, acknowledged=asyncio.run(run(seed)))


@cache
def _pristine() -> tuple[SimFileSystem, str, dict[str, bytes]]:
    log = mu.build_log()
    witness = bytes(log.files["checkpoints"].seen).decode()
    last = witness[witness.rfind(mu.ORIGIN + "\n50\n") :].removesuffix("\n")
    return log, last, {name: bytes(file.seen) for name, file in log.files.items()}


def mutation(seed: int) -> Counter[str]:
    """Damage a log of fifty records in one way, and have it found."""
    log, last, before = _pristine()
    kind = mu.KINDS[seed % len(mu.KINDS)]
    damaged = mu.mutate(log, kind, random.Random(seed))
    if {name: bytes(file.seen) for name, file in damaged.files.items()} == before:
        return Counter()  # two equal records changed places
    report = verify_log(damaged, [mu.SIGNER.verifier], witnessed=[last])
    assert not report.ok, f"{kind} was not found"
    return Counter(times=1, acknowledged=50)
