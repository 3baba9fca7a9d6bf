"""Group commit: grouping, order, bounds, and silence after a failed sync."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from services.audit import group_commit as gc
from services.audit.failures import JournalFailedError, JournalFullError
from services.audit.journal import Journal
from tests.unit.audit.crashes import LIMITS
from tests.unit.audit.simfs import SimFileSystem, fail_with


class SlowLog:
    """A log whose syncs wait until they are let through."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.gate = threading.Event()
        self.fail: list[Exception] = []

    def append(self, leaves, hashes, notes) -> int:
        """Wait at the gate, then succeed or fail as told."""
        assert self.gate.wait(10)
        if self.fail:
            raise self.fail.pop(0)
        first = sum(map(len, self.batches))
        self.batches.append(list(leaves))
        return first


class PlainLog:
    """A journal as group commit sees it, without notes."""

    def __init__(self, journal) -> None:
        self.journal = journal

    def append(self, leaves, hashes, notes) -> int:
        """Append."""
        return self.journal.append(leaves, hashes)


def committer(log, **options):
    """A committer that notes what it was told."""
    told: list = []
    fatal: list = []
    commit = gc.GroupCommit(
        log,
        on_commit=lambda first, hashes, notes: told.append((first, len(hashes))),
        on_fatal=fatal.append,
        **options,
    )
    return commit, told, fatal


async def test_what_waits_goes_together():
    """While one sync is in flight the rest gathers, goes out as one batch, and keeps its order."""
    log = SlowLog()
    commit, told, _ = committer(log)
    tasks = [asyncio.create_task(commit.append([b"%d" % n])) for n in range(50)]
    await asyncio.sleep(0.05)
    log.gate.set()
    assert await asyncio.gather(*tasks) == list(range(50))
    assert [len(batch) for batch in log.batches] in ([50], [1, 49])
    assert [n for batch in log.batches for n in batch] == [b"%d" % n for n in range(50)]
    assert sum(count for _, count in told) == 50
    await commit.close()


async def test_a_batch_has_a_limit():
    """No sync carries more than the limit, except for one append that alone has more."""
    log = SlowLog()
    log.gate.set()
    commit, _, _ = committer(log, max_batch=8)
    sizes = [3, 3, 3, 20, 1, 8, 7]
    firsts = await asyncio.gather(*(commit.append([b"x"] * n) for n in sizes))
    assert firsts == [sum(sizes[:n]) for n in range(len(sizes))]
    assert all(len(batch) <= 8 or len(batch) == 20 for batch in log.batches)
    await commit.close()


async def test_memory_is_bounded():
    """Past the bound an append is refused at once, and accepted again when the disk caught up."""
    log = SlowLog()
    commit, _, _ = committer(log, max_waiting_bytes=100)
    waiting = asyncio.create_task(commit.append([b"x" * 90]))
    await asyncio.sleep(0)
    with pytest.raises(gc.QueueFullError):
        await commit.append([b"y" * 11])
    log.gate.set()
    await waiting
    assert await commit.append([b"y" * 11]) == 1
    assert commit.waiting_bytes == 0
    await commit.close()


async def test_nothing_is_acknowledged_after_a_failed_sync():
    """Everyone who waits gets the error, everyone who comes later too, and it is told once."""
    log = SlowLog()
    log.fail = [JournalFailedError("gone")]
    commit, told, fatal = committer(log, max_batch=2)
    tasks = [asyncio.create_task(commit.append([b"x"])) for _ in range(7)]
    await asyncio.sleep(0.05)
    log.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, JournalFailedError) for result in results)
    with pytest.raises(JournalFailedError):
        await commit.append([b"later"])
    assert commit.failed
    assert len(fatal) == 1
    assert told == []
    await commit.close()


async def test_a_full_disk_is_survived():
    """A full disk fails the batch that met it and nothing else."""
    log = SlowLog()
    log.fail = [JournalFullError("full")]
    log.gate.set()
    commit, _, fatal = committer(log)
    with pytest.raises(JournalFullError):
        await commit.append([b"x"])
    assert await commit.append([b"x"]) == 0
    assert fatal == []
    await commit.close()


async def test_a_waiter_that_goes_away_takes_nothing_back():
    """A cancelled append is still written, and the others aren't disturbed."""
    log = SlowLog()
    commit, _, _ = committer(log)
    gone = asyncio.create_task(commit.append([b"gone"]))
    stays = asyncio.create_task(commit.append([b"stays"]))
    await asyncio.sleep(0.02)
    gone.cancel()
    log.gate.set()
    assert await stays == 1
    await commit.close()
    assert [leaf for batch in log.batches for leaf in batch] == [b"gone", b"stays"]


async def one_faulty_run(seed: int) -> int:
    """Append under a fault at a random operation; no acknowledgement is false. Returns how many."""
    chance = random.Random(seed)
    files = SimFileSystem()
    journal, _ = Journal.open(files, limits=LIMITS)
    countdown = chance.randint(1, 40)
    failed_sync = False

    def before(operation: str) -> None:
        nonlocal countdown, failed_sync
        countdown -= 1
        if countdown == 0:
            failed_sync = operation in {"write", "write.sync", "cut.sync"}
            raise fail_with(chance.choice((5, 28)))

    files.before = before
    commit, _, fatal = committer(PlainLog(journal), max_batch=4)
    acknowledged: dict[int, bytes] = {}
    failed_seen = False

    async def one(leaf: bytes) -> None:
        nonlocal failed_seen
        try:
            index = await commit.append([leaf])
        except JournalFullError:
            return
        except JournalFailedError:
            failed_seen = True
            return
        assert not failed_seen, f"acknowledged after the failure, seed {seed}"
        acknowledged[index] = leaf

    for round_ in range(6):
        await asyncio.gather(*(one(b"%d-%d" % (round_, n)) for n in range(10)))
    assert bool(fatal) == failed_seen
    assert fatal or not failed_sync
    await commit.close()
    files.before = lambda operation: None
    again, _ = Journal.open(files.crash(chance), limits=LIMITS)
    for index, leaf in acknowledged.items():
        assert again.read(index) == leaf, f"seed {seed}"
    return len(acknowledged)


async def test_faults_at_random_points():
    """With EIO or ENOSPC at random operations, whatever was acknowledged is in the log after."""
    for seed in range(120):
        await one_faulty_run(seed)
