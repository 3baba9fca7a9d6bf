"""The outbox: durable, in order, bounded, and never for restricted data."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.chassis.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.router.catalog import load_catalog
from services.router.compose import may_wait
from services.router.outbox import Outbox, OutboxAudit
from tests.unit.router.ports import CATALOG, Clock, FakeAudit, World
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2

AWAY = UnavailableError("AUDIT_UNREACHABLE", "away")


def entry(number: int, task: str = "diabetes_progression") -> audit_pb2.Entry:
    """An INTENT entry."""
    record = record_pb2.Record(
        kind=record_pb2.RECORD_KIND_INTENT, decision_id=f"d{number}", task=task
    )
    return audit_pb2.Entry(context=context_pb2.ItemContext(id=f"d{number}.1"), record=record)


def outbox(tmp_path: Path, max_bytes: int = 1 << 20) -> Outbox:
    """An outbox in a folder."""
    return Outbox(tmp_path / "outbox.bin", Clock(), max_bytes=max_bytes)


def ids(audit: FakeAudit) -> list[str]:
    """The decision ids in the log, in order."""
    return [e.record.decision_id for e in audit.log]


async def test_entries_wait_while_the_log_is_away_and_arrive_in_order(tmp_path: Path) -> None:
    """What came during the outage is in the log afterwards, in the order in which it came."""
    log = FakeAudit()
    box = outbox(tmp_path)
    audit = OutboxAudit(log, box, lambda _: True)
    await audit.append(entry(0))
    log.error = AWAY
    await asyncio.gather(*(audit.append(entry(n)) for n in (1, 2, 3)))
    log.error = None
    await audit.append(entry(4))  # queues behind what still waits
    assert len(box) == 4
    await box.drain(log)
    assert ids(log) == ["d0", "d1", "d2", "d3", "d4"]
    assert len(box) == 0
    await box.close()


async def test_what_waits_survives_a_restart(tmp_path: Path) -> None:
    """Entries that were acknowledged are there again after a crash, a torn tail is not."""
    box = outbox(tmp_path)
    await box.put(entry(1))
    await box.put(entry(2))
    path = tmp_path / "outbox.bin"
    path.write_bytes(path.read_bytes() + b"\x09\x00\x00\x00torn")
    again = outbox(tmp_path)
    log = FakeAudit()
    await again.drain(log)
    assert ids(log) == ["d1", "d2"]
    assert path.stat().st_size == 0


async def test_a_failed_sync_ends_every_acknowledgement(tmp_path: Path) -> None:
    """After a sync that failed nothing is acknowledged any more, also not by a later good one."""
    fail = True

    def sync(_: int) -> None:
        if fail:
            raise OSError(5, "Input/output error")

    box = Outbox(tmp_path / "o.bin", Clock(), max_bytes=1 << 20, sync=sync)
    with pytest.raises(UnavailableError):
        await box.put(entry(1))
    fail = False
    with pytest.raises(UnavailableError):
        await box.put(entry(2))
    assert len(box) == 0


async def test_a_full_outbox_refuses(tmp_path: Path) -> None:
    """Beyond its size the outbox takes nothing."""
    box = outbox(tmp_path, max_bytes=64)
    await box.put(entry(1))
    with pytest.raises(ResourceExhaustedError):
        await box.put(entry(2))


async def test_a_record_that_the_log_refuses_is_kept_aside(tmp_path: Path) -> None:
    """An entry that the log will never take holds up nobody and does not vanish."""
    box = outbox(tmp_path)
    await box.put(entry(1))
    await box.put(entry(2))
    log = FakeAudit()
    real = log.append

    async def picky(one: audit_pb2.Entry) -> audit_pb2.AppendResult:
        if one.record.decision_id == "d1":
            raise InvalidArgumentError("BAD", "never")
        return await real(one)

    log.append = picky  # type: ignore[method-assign]
    await box.drain(log)
    assert ids(log) == ["d2"]
    assert (tmp_path / "outbox.rejected").stat().st_size > 0


def test_restricted_data_never_waits_in_the_outbox() -> None:
    """Neither a restricted task nor a restricted request may be decided without the log."""
    catalog = load_catalog(CATALOG)
    assert may_wait(catalog, entry(1))
    assert not may_wait(catalog, entry(1, task="tumour_triage"))
    strict = entry(1)
    strict.record.data_class = context_pb2.DATA_CLASS_RESTRICTED
    assert not may_wait(catalog, strict)


async def test_a_decision_during_an_audit_outage(tmp_path: Path) -> None:
    """With the outbox a task that allows it is answered; a restricted one is refused."""
    world = World()
    box = outbox(tmp_path)
    behind = OutboxAudit(world.audit, box, lambda e: may_wait(world.catalog, e))
    world.steps._audit = behind
    world.audit.error = AWAY
    reply = await world.decide()
    assert reply.outputs
    assert len(box) == 2
    with pytest.raises(UnavailableError):
        await world.decide("tumour_triage")
    world.audit.error = None
    await box.drain(world.audit)
    assert world.audit.kinds() == ["INTENT", "OUTCOME"]
    await box.close()


@pytest.mark.parametrize(("key", "waits"), [("", True), ("k1", False)])
async def test_a_decision_with_a_key_never_waits_in_the_outbox(key: str, *, waits: bool) -> None:
    """That the first OUTCOME wins only the log can say; without a key nothing hangs on it."""
    world = World()
    await world.decide(idempotency_key=key)
    for one in world.audit.log:
        assert may_wait(world.catalog, one) == waits
