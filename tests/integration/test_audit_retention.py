"""Retention over gRPC: payloads go, records and the log stay, and each run is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

from services.audit.compose import build
from services.audit.failures import JournalFullError
from services.audit.journal import Journal
from services.audit.retention import DAY_US
from services.audit.verify import verify_directory
from services.chassis.errors import FailedPreconditionError, PermissionDeniedError
from tests import support
from tests.integration.test_audit_service import Calls, entry, settings_in, vkeys
from twinpath.audit.v1 import audit_pb2, record_pb2

START = 1_700_000_000_000_000
OVERRIDE = record_pb2.RECORD_KIND_OVERRIDE


class Calendar:
    """A clock that is set by the day."""

    def __init__(self) -> None:
        self.day = 0

    def unix_us(self) -> int:
        """The wall clock."""
        return START + self.day * DAY_US

    def monotonic(self) -> float:
        """The steady clock."""
        return self.day * 86_400.0


@contextlib.asynccontextmanager
async def service(folder, clock, **fields):
    """An audit service with a calendar and a retention file: `short` for 200 days, others 400."""
    catalog = folder / "catalog"
    catalog.mkdir(exist_ok=True)
    file = catalog / "retention.yaml"
    if not file.exists():
        file.write_text("default_days: 400\ntasks:\n  short: {days: 200}\n")

    async def built(settings, stack):
        return await build(settings, stack, clock)

    async with contextlib.AsyncExitStack() as stack:
        keys = support.mesh_keys(folder / "mesh")
        given = {"catalog": catalog, "segment_records": 4, **fields}
        running = await stack.enter_async_context(
            support.start_service(settings_in(folder, keys, **given), built)
        )
        yield Calls(running, keys, stack)


async def retain(calls, *, dry_run=False) -> audit_pb2.RetainResponse:
    """Run the retention."""
    officer = await calls.by("privacy_officer")
    return await officer.Retain(audit_pb2.RetainRequest(dry_run=dry_run))


async def payloads(calls, *decisions) -> list[bool]:
    """Tell of each decision whether its payload is given."""
    reader = await calls.by("service:router")
    found = []
    for name in decisions:
        got = await reader.Get(audit_pb2.GetRequest(decision_id=name, include_payload=True))
        found.append(bool(got.records[0].payload.reply))
    return found


async def filled(calls, clock) -> None:
    """Decisions of two tasks on three days, about a patient each; 40 is old and new."""
    for day in (0, 100, 250):
        clock.day = day
        for n in range(4):
            await calls.append(
                entry(f"s{day}-{n}", task="short", patient=day + n),
                entry(f"l{day}-{n}", task="long", patient=1000 + day + n),
            )


async def test_expired_payloads_go_and_everything_else_stays(tmp_path):
    """By task and age; the log verifies, its records are complete, and the run is among them."""
    clock = Calendar()
    async with service(tmp_path, clock) as calls:
        await filled(calls, clock)
        dry = await retain(calls, dry_run=True)
        assert [(t.task, t.retention_days, t.expired, t.kept) for t in dry.tasks] == [
            ("long", 400, 0, 12),
            ("short", 200, 4, 8),
        ]
        assert dry.event_id == ""
        before = b"".join(p.read_bytes() for p in (tmp_path / "audit" / "payloads").iterdir())
        done = await retain(calls)
        assert [t.expired for t in done.tasks] == [0, 4]
        assert done.keys_replaced == 4
        after = b"".join(p.read_bytes() for p in (tmp_path / "audit" / "payloads").iterdir())
        assert len(after) < len(before)
        assert await payloads(calls, "s0-0", "s100-0", "s250-3", "l0-0") == [
            False,
            True,
            True,
            True,
        ]
        auditor = await calls.by("auditor")
        query = audit_pb2.QueryRequest(filter=audit_pb2.Filter(kinds=[OVERRIDE]))
        (run,) = (await auditor.Query(query)).records
        assert run.leaf_index == done.leaf_index
        assert run.record.event.action == "retention"
        assert dict(run.record.event.details) == {"short": "4 payloads older than 200 days"}
        again = await retain(calls)
        assert (again.event_id, [t.expired for t in again.tasks]) == ("", [0, 0])
    report = verify_directory(tmp_path / "audit" / "log", vkeys(tmp_path))
    assert report.ok
    assert report.size == 25


async def test_a_restart_and_a_lost_index_bring_nothing_back(tmp_path):
    """What was removed stays removed, and what is kept is found again."""
    clock = Calendar()
    async with service(tmp_path, clock) as calls:
        await filled(calls, clock)
        await retain(calls)
    (tmp_path / "audit" / "index.sqlite").unlink()
    async with service(tmp_path, clock) as calls:
        assert await payloads(calls, "s0-1", "s100-1", "l0-1") == [False, True, True]
        assert [t.expired for t in (await retain(calls, dry_run=True)).tasks] == [0, 0]


async def test_a_subject_with_a_younger_decision_keeps_its_key(tmp_path):
    """The key still opens what is not expired, under another task too."""
    clock = Calendar()
    async with service(tmp_path, clock) as calls:
        await calls.append(*(entry(f"s{n}", task="short", patient=n) for n in range(8)))
        await calls.append(entry("l0", task="long", patient=0))
        clock.day = 250
        await calls.append(*(entry(f"n{n}", task="short", patient=9) for n in range(8)))
        done = await retain(calls)
        assert done.keys_replaced == 7
        assert await payloads(calls, "s0", "s1", "l0") == [False, False, True]
        await calls.append(entry("later", task="short", patient=1))
        assert await payloads(calls, "later") == [True]


def pending(decision: str, patient: int) -> audit_pb2.Entry:
    """The INTENT of a job's item, which holds the whole model input until the answer comes."""
    made = entry(decision, record_pb2.RECORD_KIND_INTENT, patient, task="short")
    made.payload.pending = b"a model input that waits for its answer"
    return made


async def waits(calls, decision: str) -> bool:
    """Tell whether a pending decision's payload is given."""
    reader = await calls.by("service:router")
    get = audit_pb2.GetRequest(decision_id=decision, include_payload=True)
    return bool((await reader.Get(get)).records[0].payload.pending)


async def test_payloads_of_intents_expire_like_any_other(tmp_path):
    """What a job put away goes in its time, with an answer or without one."""
    clock = Calendar()
    async with service(tmp_path, clock) as calls:
        await calls.append(pending("answered", 1), entry("answered", task="short", patient=1))
        await calls.append(pending("lost", 2))
        clock.day = 150
        await calls.append(*(pending(f"p{n}", 10 + n) for n in range(5)))
        clock.day = 250
        dry = await retain(calls, dry_run=True)
        assert [(t.task, t.expired, t.kept) for t in dry.tasks] == [("short", 3, 5)]
        done = await retain(calls)
        assert ([t.expired for t in done.tasks], done.keys_replaced) == ([3], 2)
        assert [await waits(calls, name) for name in ("answered", "lost", "p0")] == [
            False,
            False,
            True,
        ]


async def test_a_subject_with_a_pending_decision_keeps_its_key(tmp_path):
    """An old answer expires; what waits for its answer still opens."""
    clock = Calendar()
    async with service(tmp_path, clock) as calls:
        await calls.append(*(entry(f"s{n}", task="short", patient=n) for n in range(8)))
        clock.day = 250
        await calls.append(*(pending(f"p{n}", n) for n in range(4)))
        done = await retain(calls)
        assert ([t.expired for t in done.tasks], done.keys_replaced) == ([8], 4)
        assert [await waits(calls, f"p{n}") for n in range(4)] == [True] * 4


async def test_payloads_that_no_record_names_are_removed(tmp_path, monkeypatch):
    """Such as those of a batch whose records a full disk refused; now, and after a restart."""
    full, real = False, Journal.append

    def append(journal, *batch):
        if full and journal._files.directory.name == "log":
            raise JournalFullError("no space")
        return real(journal, *batch)

    monkeypatch.setattr(Journal, "append", append)
    clock = Calendar()
    for restart, unnamed in ((False, 3), (True, 3)):
        folder = tmp_path / str(restart)
        folder.mkdir()
        async with service(folder, clock) as calls:
            await calls.append(*(entry(f"a{n}", patient=n) for n in range(3)))
            full = True
            refused = await calls.append(*(entry(f"b{n}", patient=n) for n in range(unnamed)))
            assert all(result.status.code for result in refused)
            full = False
            await calls.append(*(entry(f"c{n}", patient=n) for n in range(6)))
            if not restart:
                await check_unnamed_go(calls, unnamed)
        (folder / "audit" / "index.sqlite").unlink()
        async with service(folder, clock) as calls:
            if restart:
                await check_unnamed_go(calls, unnamed)
            assert (await retain(calls, dry_run=True)).unnamed == 0
            assert await payloads(calls, "a0", "a2", "c0", "c5") == [True] * 4


async def test_an_index_that_lost_payloads_costs_none_of_them(tmp_path):
    """Before a payload is removed because no record names it, the log itself is asked."""
    async with service(tmp_path, Calendar()) as calls:
        for n in range(8):  # the first segment is full, and closed
            await calls.append(entry(f"a{n}", patient=n))
        auditor = await calls.by("auditor")
        await auditor.Query(audit_pb2.QueryRequest())  # the index has all
        with sqlite3.connect(tmp_path / "audit" / "index.sqlite") as index:
            assert index.execute("DELETE FROM payloads WHERE position < 3").rowcount == 3
        index.close()
        done = await retain(calls)
        assert (done.unnamed, done.event_id) == (0, "")
    (tmp_path / "audit" / "index.sqlite").unlink()
    async with service(tmp_path, Calendar()) as calls:
        assert await payloads(calls, *(f"a{n}" for n in range(8))) == [True] * 8


async def check_unnamed_go(calls, count) -> None:
    """Run the retention: it removes so many payloads that no record names, and nothing else."""
    assert (await retain(calls, dry_run=True)).unnamed == count
    done = await retain(calls)
    assert (done.unnamed, [t.expired for t in done.tasks], done.keys_replaced) == (count, [0], 0)
    auditor = await calls.by("auditor")
    query = audit_pb2.QueryRequest(filter=audit_pb2.Filter(kinds=[OVERRIDE]))
    (run,) = (await auditor.Query(query)).records
    told = {"without a record": f"{count} payloads of appends that failed"}
    assert dict(run.record.event.details) == told
    assert (await retain(calls)).event_id == ""


async def test_an_expired_payload_is_given_to_nobody_even_before_it_is_removed(tmp_path):
    """The segment that is written to waits for its end; what is expired in it is out already."""
    clock = Calendar()
    async with service(tmp_path, clock, segment_records=1000) as calls:
        await calls.append(entry("d1", task="short"))
        clock.day = 250
        assert await payloads(calls, "d1") == [False]
        waits = await retain(calls)
        assert (waits.waiting, waits.event_id) == (1, "")
        await calls.append(entry("d2", task="short", patient=18))
        done = await retain(calls)
        assert (done.waiting, [t.expired for t in done.tasks]) == (0, [1])
        assert await payloads(calls, "d1", "d2") == [False, True]


async def test_the_service_runs_it_by_itself(tmp_path):
    """Nobody has to ask; the record names the service."""
    clock = Calendar()
    async with service(tmp_path, clock) as calls:
        await filled(calls, clock)
    async with service(tmp_path, clock, retention_interval_s=0.05) as calls:
        auditor = await calls.by("auditor")
        query = audit_pb2.QueryRequest(filter=audit_pb2.Filter(kinds=[OVERRIDE]))
        async with asyncio.timeout(30):
            while not (found := (await auditor.Query(query)).records):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert found[0].record.event.actor == "service:audit"


async def test_a_broken_file_removes_nothing(tmp_path):
    """The mistake is named with file and line, and what is kept stays."""
    clock = Calendar()
    async with service(tmp_path, clock) as calls:
        await filled(calls, clock)
        (tmp_path / "catalog" / "retention.yaml").write_text("default_days: 3\n")
        error = await support.refusal(retain(calls))
        assert isinstance(error, FailedPreconditionError)
        assert "retention.yaml:1" in error.message
        assert await payloads(calls, "s100-0") == [True]


async def test_only_the_privacy_officer_may(tmp_path):
    """Not the router, and not an auditor."""
    async with service(tmp_path, Calendar()) as calls:
        for who in ("service:router", "auditor"):
            stub = await calls.by(who)
            error = await support.refusal(stub.Retain(audit_pb2.RetainRequest(dry_run=True)))
            assert isinstance(error, PermissionDeniedError)
