"""What the service refuses rather than hold: too large, too much at once, too far behind."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

from services.audit import ledger, metrics
from services.audit.index import Index
from services.audit.journal import Journal
from services.chassis.errors import ResourceExhaustedError, UnavailableError, from_status
from tests import support
from tests.integration.test_audit_service import entry, service
from twinpath.audit.v1 import audit_pb2

BOUND = 20_000


def reasons(results) -> list[str]:
    """Why each entry was refused; "" for one that is durable."""
    errors = [from_status(result.status) for result in results]
    assert all(isinstance(error, ResourceExhaustedError | None) for error in errors)
    return [error.reason if error else "" for error in errors]


async def test_a_record_that_is_too_large_is_refused_alone(tmp_path):
    """One byte past the bound; the payload, which is kept apart, has bounds of its own."""
    large = entry("large", reason="x" * 5_000)
    async with service(tmp_path, max_record_bytes=1 << 20) as calls:
        await calls.append(large)
        auditor = await calls.by("auditor")
        proven = await auditor.Prove(audit_pb2.ProveRequest(decision_id="large"))
        size = len(proven.proofs[0].leaf)
    for more, wanted in ((0, ""), (1, "RECORD_TOO_LARGE")):
        one = entry("later", reason="x" * (5_000 + more))
        one.payload.reply = b"x" * 100_000
        async with service(tmp_path / str(more), max_record_bytes=size) as calls:
            assert reasons(await calls.append(one, entry("small"))) == [wanted, ""]


async def test_more_than_the_bound_does_not_wait(tmp_path, monkeypatch):
    """While the disk stands still, memory stays within its bound; what was refused can come again."""
    go_on, real = threading.Event(), Journal.append

    def slow(journal, *batch):
        assert go_on.wait(60)
        return real(journal, *batch)

    def waiting() -> float:
        return metrics.WAITING.collect()[0].samples[0].value

    monkeypatch.setattr(Journal, "append", slow)
    async with service(tmp_path, max_waiting_bytes=BOUND) as calls:
        sent = {}
        try:
            while not any(call.done() for call in sent.values()):
                name = f"d{len(sent)}"
                sent[name] = asyncio.create_task(calls.append(entry(name)))
                await asyncio.wait({sent[name]}, timeout=0.02)
                assert waiting() <= BOUND
                assert len(sent) < 1_000
            assert waiting() > BOUND / 2
        finally:
            go_on.set()
        refused = []
        for name, call in sent.items():
            (result,) = await call
            if (error := from_status(result.status)) is not None:
                assert (error.reason, error.retry_after) == ("LOG_BUSY", 0.1)
                refused.append(entry(name))
        assert 0 < len(refused) < len(sent)
        assert waiting() == 0
        assert reasons(await calls.append(*refused)) == [""] * len(refused)


async def test_an_index_that_can_not_be_written_is_not_left_behind_without_end(
    tmp_path, monkeypatch
):
    """Appends go on for a while, questions say why they can't be answered, and all heals by itself."""
    broken, real = True, Index.add

    def add(index, *rows):
        if broken:
            raise sqlite3.OperationalError("database or disk is full")
        real(index, *rows)

    monkeypatch.setattr(Index, "add", add)
    monkeypatch.setattr(ledger, "_MAX_UNINDEXED", 5)
    async with service(tmp_path) as calls:
        for n in range(6):
            assert reasons(await calls.append(entry(f"d{n}"))) == [""]
        assert reasons(await calls.append(entry("d6"))) == ["LOG_BUSY"]
        auditor = await calls.by("auditor")
        refused = await support.refusal(auditor.Query(audit_pb2.QueryRequest()))
        assert isinstance(refused, UnavailableError)
        assert refused.reason == "INDEX_BEHIND"
        broken = False
        async with asyncio.timeout(30):
            while reasons(await calls.append(entry("d6"))) == ["LOG_BUSY"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        found = (await auditor.Query(audit_pb2.QueryRequest())).records
        assert [stored.record.decision_id for stored in found] == [f"d{n}" for n in range(7)]


async def test_a_full_disk_is_said_before_it_hurts(tmp_path):
    """Below the free space that was asked for, the service is NOT_SERVING and says why."""
    async with service(tmp_path, min_free_bytes=1 << 60) as calls:
        assert not await calls.running.health.check()
        assert "free" in calls.running.health.failures["log"]
