"""The journal on the real file system and on one that loses, tears and fails."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from services.audit import journal as jn
from services.audit.failures import CorruptLogError, JournalFailedError, JournalFullError
from services.audit.filesystem import OsFileSystem
from services.audit.merkle import leaf_hash
from services.audit.segments import Recovery
from services.audit.watermark import WATERMARK
from tests.unit.audit.crashes import LIMITS, run_to_crash
from tests.unit.audit.simfs import SimFileSystem, fail_with


def filled(files, count=40, batch=3):
    """A journal with `count` records in batches, over several segments."""
    journal, _ = jn.Journal.open(files, limits=LIMITS)
    leaves = [b"record %d " % n + b"x" * (n % 90) for n in range(count)]
    for at in range(0, count, batch):
        journal.append(leaves[at : at + batch])
    return journal, leaves


def reopened(files, **options):
    """The journal as the next process finds it."""
    return jn.Journal.open(files, limits=LIMITS, **options)


def written(files, name):
    """Where the zeros begin at the end of a segment."""
    return len(files.files[name].seen.rstrip(b"\0"))


def journal_end(files):
    """The name of the segment that is written to."""
    return max(name for name in files.names() if name.endswith(".seg"))


def test_round_trip_over_segments(tmp_path):
    """Records, their hashes and their order survive closing, with and without side files."""
    files = OsFileSystem(tmp_path)
    journal, leaves = filled(files)
    assert [journal.read(n) for n in range(40)] == leaves
    journal.close()
    assert len([n for n in files.names() if n.endswith(".seg")]) > 2
    again, recovery = reopened(files)
    assert recovery == Recovery(40)
    assert [leaf for _, leaf in again.scan()] == leaves
    assert list(again.scan(38)) == [(38, leaves[38]), (39, leaves[39])]
    assert again.leaf_hashes() == b"".join(map(leaf_hash, leaves))
    for name in files.names():
        if name.endswith(".idx"):
            files.remove(name)
    third, recovery = reopened(files)
    assert recovery.rebuilt
    assert [third.read(n) for n in range(40)] == leaves
    assert third.append([b"next"]) == 40
    with pytest.raises(IndexError):
        third.read(41)
    files.close()


def test_each_write_is_its_own_sync(tmp_path):
    """What a journal writes through is written to a file whose every write waits for the disk."""
    files = OsFileSystem(tmp_path)
    journal, _ = filled(files)
    flags = [
        int(told.read_text().split("flags:")[1].split()[0], 8)
        for told in Path("/proc/self/fdinfo").iterdir()
        if (told.parent.parent / "fd" / told.name).resolve() == tmp_path / journal_end(files)
    ]
    assert flags
    assert all(flag & os.O_DSYNC for flag in flags if flag & os.O_WRONLY)
    journal.close()
    files.close()


def test_a_second_writer_is_locked_out(tmp_path):
    """Two processes can't append to one log."""
    files = OsFileSystem(tmp_path)
    with pytest.raises(BlockingIOError):
        OsFileSystem(tmp_path)
    files.close()
    OsFileSystem(tmp_path).close()


def test_crash_points():
    """Whatever a crash drops, tears and reorders, all that was acknowledged is there after it."""
    results = [run_to_crash(seed) for seed in range(400)]
    assert sum(crashes for _, crashes in results) >= 400
    assert sum(acknowledged for acknowledged, _ in results) > 4_000


def test_crash_points_can_fail(monkeypatch):
    """Without the sync the same runs lose acknowledged records: the test above can turn red."""
    monkeypatch.setattr("tests.unit.audit.simfs.SimFile.write_through", lambda *_: None)
    lost = 0
    for seed in range(30):
        try:
            run_to_crash(seed)
        except (AssertionError, CorruptLogError):
            lost += 1
    assert lost > 0


def test_what_a_start_finds_is_made_durable():
    """A batch whose sync failed may be found by the next process: it is on disk before anyone hears.

    The kernel has forgotten that it is not; the page cache shows it, and another sync would do
    nothing.
    """
    files = SimFileSystem()
    journal, _ = filled(files, count=5)

    def fails(operation: str) -> None:
        if operation == "write.sync":
            raise fail_with(errno.EIO)

    files.before = fails
    with pytest.raises(JournalFailedError):
        journal.append([b"written, and not on the disk"])
    files.before = lambda operation: None
    found, _ = reopened(files)
    after_power_failure, _ = reopened(files.crash(random.Random(1)))
    assert found.size == after_power_failure.size == 6


def test_torn_tail_is_cut_and_reported():
    """A batch whose sync never returned is cut, and the report says how much and where."""
    files = SimFileSystem()
    journal, _ = filled(files, count=5)
    name = next(n for n in files.names() if n.endswith(".seg"))
    whole = written(files, name)
    journal.append([b"will be torn"])
    torn = written(files, name) - 4
    files.files[name].seen[torn:] = bytes(files.size(name) - torn)
    files.remove(WATERMARK)
    again, recovery = reopened(files)
    assert recovery.size == 5
    assert recovery.cut_segment == name
    assert recovery.cut_bytes == torn - whole
    assert files.size(name) == whole
    assert again.append([b"after"]) == 5


def test_a_lost_tail_that_was_durable_is_an_error():
    """Where the watermark or a checkpoint proves that a record was durable, it isn't cut away."""
    for evidence in ("watermark", "checkpoint"):
        files = SimFileSystem()
        filled(files, count=6)
        name = next(n for n in files.names() if n.endswith(".seg"))
        if evidence == "checkpoint":
            files.remove(WATERMARK)
        files.files[name].seen[written(files, name) - 1] ^= 1
        with pytest.raises(CorruptLogError) as caught:
            reopened(files, durable_size=6 if evidence == "checkpoint" else 0)
        assert caught.value.index == 5
        del files.files[name].seen[100:]
        with pytest.raises(CorruptLogError):
            reopened(files, durable_size=6 if evidence == "checkpoint" else 0)


def test_a_corrupted_middle_names_the_record():
    """A byte flipped anywhere before the last batch keeps the log closed and names the record."""
    pristine = SimFileSystem()
    _, leaves = filled(pristine)
    chance = random.Random(1)
    names = [n for n in pristine.names() if n.endswith(".seg")]
    for _ in range(300):
        files = SimFileSystem()
        filled(files)
        name = chance.choice(names)
        data = files.files[name].seen
        at = chance.randrange(20, written(files, name))
        data[at] ^= 1 << chance.randrange(8)
        with pytest.raises(CorruptLogError) as caught:
            reopened(files)
        index = caught.value.index
        needle = leaves[index][:10]
        found = bytes(pristine.files[name].seen).find(needle)
        assert found >= 0, "the record named is in the damaged segment"
        assert abs(found - at) < 400, "and near the damage"


def test_a_missing_segment_is_named():
    """A segment that was deleted is an error that names its first record."""
    files = SimFileSystem()
    filled(files)
    names = [n for n in files.names() if n.endswith(".seg")]
    files.remove(names[1])
    with pytest.raises(CorruptLogError) as caught:
        reopened(files)
    assert caught.value.index == int(names[1][:-4])


def test_a_damaged_record_is_not_served():
    """A record that rots while the service runs is an error on read, not wrong data."""
    files = SimFileSystem()
    journal, _ = filled(files, count=3)
    name = next(n for n in files.names() if n.endswith(".seg"))
    files.files[name].seen[60] ^= 4
    with pytest.raises(CorruptLogError):
        [journal.read(n) for n in range(3)]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    "operation",
    ["write", "write.sync", "reserve", "reserve.sync", "open", "sync_directory", "cut", "cut.sync"],
)
def test_failures(operation, number):
    """After a failed sync nothing is acknowledged again; a full disk before it is survived."""
    for countdown in range(12):
        files = SimFileSystem()
        journal, _ = filled(files, count=5)
        left = countdown
        failed_sync = False

        def before(asked: str) -> None:
            nonlocal left, failed_sync
            if asked == operation:
                left -= 1
                if left == 0:
                    failed_sync = asked in {"write", "write.sync", "sync_directory", "cut.sync"}
                    raise fail_with(number)

        files.before = before
        acknowledged = journal.size
        fatal = False
        for n in range(30):
            try:
                journal.append([b"later %d" % n])
            except JournalFullError:
                assert not fatal
                assert number == errno.ENOSPC
            except JournalFailedError:
                fatal = True
            else:
                assert not fatal, "acknowledged after a failure of unknown outcome"
                acknowledged += 1
        assert fatal or not failed_sync
        assert journal.failed == fatal
        files.before = lambda asked: None
        again, _ = reopened(files)
        assert again.size >= acknowledged


def test_full_disk_then_space_again():
    """A write that finds the disk full leaves no trace, and the next one follows on."""
    files = SimFileSystem()
    journal, leaves = filled(files, count=5)

    def full(operation: str) -> None:
        if operation == "reserve":
            raise fail_with(errno.ENOSPC)

    files.before = full
    with pytest.raises(JournalFullError):
        journal.append([b"no room" * 1000])
    files.before = lambda operation: None
    assert journal.append([b"room"]) == 5
    again, recovery = reopened(files)
    assert [leaf for _, leaf in again.scan()] == [*leaves, b"room"]
    assert recovery.cut_bytes == 0
