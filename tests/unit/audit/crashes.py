"""Runs of a journal up to a crash, and what must hold after it. Used by unit and chaos.

A crash is one of the machine, which takes the page cache along, or one of the process alone.
"""

from __future__ import annotations

import random

from services.audit.journal import Journal, Limits
from services.audit.storage import payload_digest
from tests.unit.audit.simfs import Crash, SimFileSystem

LIMITS = Limits(segment_records=12, segment_bytes=6_000, reserved_bytes=1_000)


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
            if chance.random() < 0.7:
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


def run_retention_to_crash(seed: int) -> tuple[int, int]:
    """Write payloads, empty some of them as the retention does, and crash somewhere in between.

    Returns (payloads acknowledged, crashes).

    Raises:
        AssertionError: a payload that nobody wanted removed is missing or changed, one whose
            removal had ended is back, or the segments can't be opened any more.
    """
    chance = random.Random(seed)
    system = SimFileSystem()
    kept: list[bytes] = []
    asked: set[int] = set()
    gone: set[int] = set()
    crashes = 0
    for life in range(chance.randint(2, 5)):
        journal = _opened(system)
        countdown = chance.randint(1, 45)

        def before(operation: str) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown <= 0:
                raise Crash(operation)

        system.before = before
        in_flight: list[bytes] = []
        try:
            while True:
                if chance.random() < 0.3:
                    journal.roll()
                sealed = [at for at in range(len(kept)) if journal.is_sealed(at)]
                if sealed and chance.random() < 0.4:
                    wanted = set(chance.sample(sealed, chance.randint(1, min(6, len(sealed)))))
                    asked |= wanted
                    journal.blank(wanted)
                    gone |= wanted
                    continue
                in_flight = [
                    b"%d:%d:%d:" % (seed, life, n) + chance.randbytes(chance.choice((5, 90, 700)))
                    for n in range(chance.choice((1, 2, 4)))
                ]
                assert journal.append(in_flight) == len(kept)
                kept += in_flight
                in_flight = []
        except Crash:
            crashes += 1
            if chance.random() < 0.7:
                system = system.crash(chance)
        journal = _opened(system)
        found = [leaf for _, leaf in journal.scan()]
        assert found[len(kept) :] in ([], in_flight), f"half a batch, seed {seed}"
        for at, leaf in enumerate(kept):
            if at in gone:
                assert found[at] == b"", f"payload {at} is back, seed {seed}"
            elif at in asked:
                assert found[at] in (b"", leaf), f"payload {at} was changed, seed {seed}"
            else:
                assert found[at] == leaf, f"payload {at} was lost, seed {seed}"
            assert journal.read(at) == found[at]
            if not found[at]:
                gone.add(at)  # on the disk now, and must stay so
        kept += found[len(kept) :]
    return len(kept), crashes


def _opened(system: SimFileSystem) -> Journal:
    """Open as the service does: sealed segments are checked a little later."""
    system.before = lambda operation: None
    journal, _ = Journal.open(
        system, limits=LIMITS, hasher=payload_digest, watermark=False, check_sealed=False
    )
    list(journal.check_sealed())
    return journal
