"""The ledger over two simulated disks, one for records and one for payloads. Unit and chaos use it.

Keys, index and all that appends and reads are the service's own; only the two disks crash or fail.
What is checked is what a caller gets to see: each decision that was acknowledged, with its reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

from services.audit import storage
from services.audit.ledger import Ledger
from services.audit.reading import Reader
from services.audit.settings import AuditSettings
from services.audit.signing import read_keyring
from services.chassis.clock import SystemClock
from services.chassis.errors import DataLossError
from tests.unit.audit.crashes import LIMITS
from tests.unit.audit.simfs import Crash, SimFileSystem, fail_with
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import value_pb2

INTENT, OUTCOME = record_pb2.RECORD_KIND_INTENT, record_pb2.RECORD_KIND_OUTCOME
PATIENCE_S = 30.0  # a query that waits for what never comes
_MEMORY = Path("/dev/shm")  # keys and index need no disk here, and their syncs take most of a run


class Machine:
    """Two disks, and a folder for what is no log: keys and index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.payloads = SimFileSystem(), SimFileSystem()
        self.settings = AuditSettings(
            listen="127.0.0.1:0",
            trusted_keys=folder,
            access_file=folder,
            directory=folder,
            key_store=folder / "keys" / "subjects.sqlite",
            signing_key=folder / "keys" / "audit.pem",
        )
        self.keyring = read_keyring(
            self.settings.origin, self.settings.signing_key, also_sign=None, known_keys=None
        )

    def before(self, do: Callable[[str, str], None]) -> None:
        """Let `do(disk, operation)` be called ahead of each operation."""
        self.log.before, self.payloads.before = partial(do, "log"), partial(do, "payloads")

    def heal(self) -> None:
        """Let all operations succeed."""
        self.before(lambda disk, operation: None)

    def crash(self, chance: random.Random) -> None:
        """Lose the power, or the process alone; now and then the index goes, too."""
        if chance.random() < 0.7:
            self.log, self.payloads = self.log.crash(chance), self.payloads.crash(chance)
        if chance.random() < 0.3:
            (self.folder / storage.INDEX).unlink(missing_ok=True)
        self.heal()

    @contextlib.asynccontextmanager
    async def ledger(self) -> AsyncIterator[Ledger]:
        """Open the ledger as the service does."""
        with mock.patch.object(storage, "Limits", return_value=LIMITS):
            opened = storage._open(self.settings, self.keyring, self.log, self.payloads, 1)
        ledger = Ledger(opened, self.settings, SystemClock())
        indexing = asyncio.create_task(ledger.run_index())
        try:
            yield ledger
        finally:
            await ledger.close()
            indexing.cancel()
            await asyncio.wait({indexing})
            opened.index.close()
            opened.keys.close()


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Give a new machine; its folder goes at the end."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        yield Machine(Path(folder))


def reply_of(decision: str) -> bytes:
    """What was answered."""
    return b"the reply of " + decision.encode() * (len(decision) % 4 * 20)


def entries(decision: str) -> list[audit_pb2.Entry]:
    """An INTENT, for some decisions with a payload, and an OUTCOME with one."""
    made = []
    for kind in (INTENT, OUTCOME):
        entry = audit_pb2.Entry(record=record_pb2.Record(kind=kind, decision_id=decision))
        entry.record.task = "simulated"
        entry.subject.entity["patient"].CopyFrom(value_pb2.Value(int64_value=len(decision)))
        if kind == OUTCOME or decision.endswith("1"):
            entry.payload.reply = reply_of(decision)
        made.append(entry)
    return made


async def append(ledger: Ledger, decisions: list[str]) -> set[str]:
    """Append all in one call; return those whose OUTCOME was acknowledged."""
    wanted = [entry for decision in decisions for entry in entries(decision)]
    results = await ledger.append(wanted)
    return {
        entry.record.decision_id
        for entry, result in zip(wanted, results, strict=True)
        if entry.record.kind == OUTCOME and result.error is None
    }


async def check(ledger: Ledger, acknowledged: set[str], seed: int) -> set[str]:
    """Read all that the log has, and return the decisions that have an OUTCOME.

    Raises:
        AssertionError: an acknowledged one is missing, or any is without its own reply.
    """
    found = set()
    reader = Reader(ledger)
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for records in reader.export(audit_pb2.Filter(), with_payload=True):
                for stored in records:
                    decision = stored.record.decision_id
                    wanted = reply_of(decision) if stored.record.payload_digest else b""
                    assert stored.payload.reply == wanted, f"another payload, seed {seed}"
                    if stored.record.kind == OUTCOME:
                        assert wanted, f"no payload, seed {seed}"
                        assert decision not in found, f"two OUTCOMEs, seed {seed}"
                        found.add(decision)
    except TimeoutError:
        raise AssertionError(f"a query hangs, seed {seed}") from None
    except DataLossError as error:
        raise AssertionError(f"{error.message}, seed {seed}") from error
    assert acknowledged <= found, f"lost, seed {seed}"
    return found


async def crash_run(seed: int) -> tuple[int, int]:
    """Append, crash somewhere, recover, again and again; return (acknowledged, crashes).

    Raises:
        AssertionError: as `check` does.
    """
    chance, crashes = random.Random(seed), 0
    acknowledged: set[str] = set()
    with machine() as host:
        for life in range(chance.randint(1, 3)):
            acknowledged |= await _until_it_crashes(host, chance.randint(1, 80), str(life))
            crashes += 1
            host.crash(chance)
            async with host.ledger() as ledger:
                acknowledged = await check(ledger, acknowledged, seed)
    return len(acknowledged), crashes


async def _until_it_crashes(host: Machine, countdown: int, name: str) -> set[str]:
    """Append until either disk was asked for so many operations; return what was acknowledged."""
    acknowledged: set[str] = set()

    def before(disk: str, operation: str) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown <= 0:
            raise Crash(operation)

    host.before(before)
    with contextlib.suppress(Crash):  # while the log is opened
        async with host.ledger() as ledger:
            n = 0
            while not ledger.failed.done():
                calls = [[f"{name}:{n + k}:{j}" for j in range(k + 1)] for k in range(3)]
                n += len(calls)
                for done in await asyncio.gather(*(append(ledger, call) for call in calls)):
                    acknowledged |= done
            ledger.failed.exception()
    return acknowledged


async def faulty_run(seed: int) -> int:
    """Fail operations of either disk with EIO or ENOSPC; return how many were acknowledged.

    Most disks are only full for a moment: the log lives on.

    Raises:
        AssertionError: something was acknowledged after a failure, or as `check` does.
    """
    chance = random.Random(seed)
    only_full, count = chance.random() < 0.7, 0
    bad = {chance.randint(1, 20 if only_full else 120) for _ in range(chance.randint(1, 6))}
    acknowledged: set[str] = set()

    def before(disk: str, operation: str) -> None:
        nonlocal count
        count += operation == "reserve" or not only_full
        if count in bad:
            bad.remove(count)
            raise fail_with(errno.ENOSPC if only_full else chance.choice((errno.EIO, errno.ENOSPC)))

    with machine() as host:
        async with host.ledger() as ledger:
            host.before(before)
            for n in range(12):
                failed = ledger.failed.done()
                calls = [[f"{n}:{k}:{j}" for j in range(k + 1)] for k in range(2)]
                done = set().union(*await asyncio.gather(*(append(ledger, c) for c in calls)))
                assert not (failed and done), f"acknowledged after the failure, seed {seed}"
                acknowledged |= done
            if ledger.failed.done():
                ledger.failed.exception()
            else:
                await check(ledger, acknowledged, seed)
        host.crash(chance)
        async with host.ledger() as ledger:
            await check(ledger, acknowledged, seed)
    return len(acknowledged)
