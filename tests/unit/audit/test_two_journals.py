"""Records and payloads on two disks that crash or fail: each record has its own payload."""

from __future__ import annotations

from services.audit.live_index import LiveIndex
from tests.unit.audit import two_journals


async def test_a_crash_leaves_no_record_without_its_payload():
    """Wherever the power goes, what was acknowledged is there, and whatever is there opens."""
    counts = [await two_journals.crash_run(seed) for seed in range(40)]
    assert sum(crashes for _, crashes in counts) >= 40
    assert sum(acknowledged for acknowledged, _ in counts) > 200


async def test_a_disk_that_fails_moves_no_payload():
    """With EIO or ENOSPC on either disk, each answer to a question is the right one."""
    assert sum([await two_journals.faulty_run(seed) for seed in range(60)]) > 1_000


async def test_a_payload_that_is_counted_wrong_is_found(monkeypatch):
    """If payloads were counted and not looked where they are, these runs would turn red."""
    real = LiveIndex.stored
    monkeypatch.setattr(LiveIndex, "stored", lambda live, _, new: real(live, live._stored, new))
    found = []
    for seed in range(20):
        try:
            await two_journals.faulty_run(seed)
        except AssertionError as error:
            found.append(error)
    assert found
