"""How long payloads are kept, and segments that are written anew without some of them."""

from __future__ import annotations

import errno
import random
import threading

import pytest

from services.audit.failures import CorruptLogError
from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.keystore import KeyStore
from services.audit.retention import DAY_US, Retention, read_retention
from services.audit.storage import payload_digest
from services.chassis.files import FileError
from tests.support import ROOT
from tests.unit.audit.crashes import LIMITS, run_retention_to_crash


def test_a_task_without_a_word_has_the_default() -> None:
    """Six months, unless the file says more."""
    retention = Retention(200, {"a": 4000})
    assert (retention.days("a"), retention.days("b")) == (4000, 200)
    now = 500 * DAY_US
    assert retention.expired("b", 299 * DAY_US, now)
    assert not retention.expired("b", 300 * DAY_US, now)
    assert not retention.expired("a", 0, now)


def test_the_shipped_file_keeps_six_months_or_more() -> None:
    """What a new mesh starts with forgets nothing too early."""
    retention = read_retention(ROOT / "deploy" / "catalog" / "retention.yaml")
    assert min([retention.default_days, *retention.by_task.values()]) >= 183
    assert read_retention(None).default_days >= 183


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default_days: 30\n", "default_days"),
        ("tasks:\n  a: {days: 30}\n", "need a reason"),
        ("tasks:\n  a: {days: 0, shorter_because: x}\n", "tasks.a.days"),
        ("tasks:\n  a: {years: 3}\n", "years"),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path, text, says) -> None:
    """Less than six months by default, or without a reason, is a mistake with its line."""
    (tmp_path / "retention.yaml").write_text(text)
    with pytest.raises(FileError, match=says):
        read_retention(tmp_path / "retention.yaml")


def test_less_than_six_months_is_possible_with_a_reason(tmp_path) -> None:
    """A law may demand less."""
    file = tmp_path / "retention.yaml"
    file.write_text("tasks:\n  a: {days: 30, shorter_because: the works council's agreement}\n")
    assert read_retention(file).days("a") == 30


def payloads_in(folder) -> tuple[OsFileSystem, Journal, list[bytes]]:
    """A journal of payloads over several segments."""
    files = OsFileSystem(folder)
    journal, _ = Journal.open(files, limits=LIMITS, hasher=payload_digest, watermark=False)
    payloads = [b"payload %d " % n + bytes([n]) * (n % 70) for n in range(60)]
    for at in range(0, 60, 3):
        journal.append(payloads[at : at + 3])
    return files, journal, payloads


def test_what_is_removed_is_on_the_disk_no_more_and_the_rest_is(tmp_path) -> None:
    """In every file of the folder, at once and after a restart."""
    files, journal, payloads = payloads_in(tmp_path)
    sealed = [n for n in range(60) if journal.is_sealed(n)]
    gone = set(random.Random(3).sample(sealed, 20))
    for n in gone:
        assert journal.read(n) == payloads[n]  # through a descriptor that is kept open
    journal.blank(gone)
    for _ in range(2):
        assert [journal.read(n) for n in range(60)] == [
            b"" if n in gone else payloads[n] for n in range(60)
        ]
        assert [journal.is_blank(n) for n in range(60)] == [n in gone for n in range(60)]
        journal.close()
        journal, _ = Journal.open(files, limits=LIMITS, hasher=payload_digest, watermark=False)
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for n in range(60):
        assert (b"payload %d " % n in held) is (n not in gone)
    files.close()


def test_a_lost_side_file_is_no_loss(tmp_path) -> None:
    """A crash between the new segment and its side file leaves a log that opens."""
    files, journal, payloads = payloads_in(tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.glob("*.idx")}
    journal.blank([1])
    journal.close()
    for name, data in old.items():
        (tmp_path / name).write_bytes(data)  # as before
    again, recovery = Journal.open(files, limits=LIMITS, hasher=payload_digest, watermark=False)
    assert recovery.rebuilt
    assert (again.read(0), again.read(1)) == (payloads[0], b"")
    files.close()


def test_a_disk_that_can_not_take_the_smaller_segment_loses_nothing(tmp_path, monkeypatch) -> None:
    """All stays as it was, and a later try removes what is to go."""
    files, journal, payloads = payloads_in(tmp_path)

    def full(name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", full)
        with pytest.raises(OSError, match="no space"):
            journal.blank([1])
    assert (journal.read(1), journal.is_blank(1)) == (payloads[1], False)
    journal.blank([1])
    assert (journal.read(0), journal.read(1)) == (payloads[0], b"")
    files.close()


def test_the_segment_that_is_written_to_is_left_alone_until_it_is_sealed(tmp_path) -> None:
    """`roll` seals it with the next append."""
    files, journal, _ = payloads_in(tmp_path)
    last = journal.size - 1
    assert not journal.is_sealed(last)
    with pytest.raises(ValueError, match="still written to"):
        journal.blank([last])
    journal.roll()
    journal.append([b"one more"])
    assert journal.is_sealed(last)
    journal.blank([last])
    assert (journal.read(last), journal.read(last + 1)) == (b"", b"one more")
    files.close()


def test_readers_and_writers_go_on_while_segments_are_written_anew(tmp_path) -> None:
    """Nobody ever reads anything but the payload or nothing, whatever the moment."""
    files, journal, payloads = payloads_in(tmp_path)
    sealed = [n for n in range(60) if journal.is_sealed(n)]
    stop, faults = threading.Event(), []

    def read() -> None:
        dice = random.Random(1)
        while not stop.is_set():
            n = dice.choice(sealed)
            try:
                if journal.read(n) not in (payloads[n], b""):
                    faults.append(n)
            except CorruptLogError as error:
                faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in sealed:
        journal.blank([n])
        journal.append([b"meanwhile %d" % n])
    stop.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert all(journal.is_blank(n) for n in sealed)
    files.close()


def test_a_replaced_payload_key_opens_nothing_of_before(tmp_path) -> None:
    """The key is in none of the store's files; pseudonym and HMAC key stay."""
    store = KeyStore(tmp_path / "keys.sqlite")
    before = store.ensure(["ann", "bob"])
    sealed = before["ann"].seal(b"secret", b"d1")
    with store.frozen([before["ann"].pseudonym]):
        assert store.is_frozen(before["ann"].pseudonym)
        assert not store.is_frozen(before["bob"].pseudonym)
        assert store.renew_payload_keys([before["ann"].pseudonym]) == 1
    assert not store.is_frozen(before["ann"].pseudonym)
    after = store.ensure(["ann", "bob"])
    assert after["bob"] == before["bob"]
    assert after["ann"].pseudonym == before["ann"].pseudonym
    assert after["ann"].hmac_key == before["ann"].hmac_key
    with pytest.raises(ValueError, match="does not open"):
        after["ann"].open(sealed, b"d1")
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert not any(before["ann"].payload_key in data for data in files)
    store.close()


def test_a_crash_while_payloads_are_removed_loses_nothing_else() -> None:
    """Wherever the power goes: what was to go is whole or gone, what was to stay is there."""
    crashes = 0
    for seed in range(150):
        crashes += run_retention_to_crash(seed)[1]
    assert crashes > 300
