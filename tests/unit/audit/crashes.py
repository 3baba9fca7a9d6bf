"""One run of the journal up to a crash, and what must hold after it. Used by unit and chaos."""

from __future__ import annotations

import random

from services.audit.journal import Journal, Limits
from tests.unit.audit.simfs import Crash, SimFileSystem

LIMITS = Limits(segment_records=12, segment_bytes=6_000)


def run_to_crash(seed: int) -> tuple[int, int]:
    """Write, crash somewhere, recover, again and again; return (acknowledged, crashes).

    Raises:
        AssertionError: if anything acknowledged is missing or changed, or if what was recovered
            isn't a prefix of what was submitted since.
    """
    chance = random.Random(seed)
    system = SimFileSystem()
    acknowledged: list[bytes] = []
    crashes = 0
    for life in range(chance.randint(1, 4)):
        countdown = chance.randint(1, 60)

        def before(operation: str) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown <= 0:
                raise Crash(operation)

        system.before = before
        in_flight: list[bytes] = []
        try:
            journal, _ = Journal.open(system, limits=LIMITS)
            recovered = [leaf for _, leaf in journal.scan()]
            assert recovered[: len(acknowledged)] == acknowledged, f"lost, seed {seed}"
            acknowledged = recovered  # an unacknowledged batch may survive; it is in the log now
            while True:
                size = chance.choice((1, 1, 2, 5, 9))
                in_flight = [
                    b"%d:%d:%d:" % (seed, life, n) + chance.randbytes(chance.choice((0, 20, 700)))
                    for n in range(size)
                ]
                first = journal.append(in_flight)
                assert first == len(acknowledged)
                acknowledged += in_flight
                in_flight = []
        except Crash:
            crashes += 1
            system = system.crash(chance)
        before_last = len(acknowledged)
        system.before = lambda operation: None
        journal, recovery = Journal.open(system, limits=LIMITS)
        survivors = [leaf for _, leaf in journal.scan()]
        assert recovery.size == len(survivors)
        assert survivors[:before_last] == acknowledged, f"lost, seed {seed}"
        assert survivors[before_last:] in ([], in_flight), f"half a batch, seed {seed}"
        assert [journal.read(n) for n in range(len(survivors))] == survivors
        acknowledged = survivors
    return len(acknowledged), crashes
