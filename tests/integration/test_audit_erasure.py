"""What an erasure names: copies elsewhere, those that are there and no others."""

from __future__ import annotations

import pytest

from services.chassis.errors import NotFoundError
from tests import support
from tests.integration.test_audit_service import entry, service, subject
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2

pytestmark = pytest.mark.integration


async def export(calls, folder, path: str, **wanted) -> int:
    """Take payloads out, as one who may; return how many records came."""
    keys = calls.keys
    token = keys.token("eve", roles=["auditor", "payload_reader"])
    async with support.client(calls.running.address, token) as channel:
        request = audit_pb2.ExportRequest(
            filter=audit_pb2.Filter(**wanted), include_payload=True, destination=path
        )
        parts = audit_pb2_grpc.AuditStub(channel).Export(request)
        return sum([len(part.records) async for part in parts])


async def erased(calls, patient: int) -> list[str]:
    """Erase a patient; return the copies that are named."""
    officer = await calls.by("privacy_officer")
    request = audit_pb2.EraseRequest(subject=subject(patient), reason="asked for it")
    return list((await officer.Erase(request)).not_reached)


async def test_an_erasure_names_the_exports_that_may_hold_the_subject(tmp_path):
    """By who took them and where to; not those that can't, or that hold no payloads."""
    async with service(tmp_path) as calls:
        await calls.append(entry("other", patient=18))
        assert await export(calls, tmp_path, "/exports/before.jsonl") == 2  # and itself
        await calls.append(entry("d1"), entry("d2", task="something_else", patient=18))
        await export(calls, tmp_path, "/exports/all.jsonl")
        await export(calls, tmp_path, "/exports/mine.jsonl", subject=subject(17))
        await export(calls, tmp_path, "/exports/yours.jsonl", subject=subject(18))
        await export(calls, tmp_path, "/exports/task.jsonl", task="something_else")
        auditor = await calls.by("auditor")
        plain = audit_pb2.ExportRequest(destination="/exports/plain.jsonl")
        assert [part async for part in auditor.Export(plain)]
        named = [copy for copy in await erased(calls, 17) if copy.startswith("export")]
        assert [copy.split(": ")[1] for copy in named] == [
            "/exports/all.jsonl",
            "/exports/mine.jsonl",
        ]
        assert all("by eve" in copy for copy in named)
        wanted = audit_pb2.Filter(kinds=[record_pb2.RECORD_KIND_ERASURE])
        (stored,) = (await auditor.Query(audit_pb2.QueryRequest(filter=wanted))).records
        assert set(named) <= set(stored.record.event.details.values())
        missing = audit_pb2.EraseRequest(subject=subject(17), reason="again")
        officer = await calls.by("privacy_officer")
        assert isinstance(await support.refusal(officer.Erase(missing)), NotFoundError)


async def test_an_erasure_names_the_cache_of_tasks_that_keep_answers(tmp_path):
    """By task and by how long, if the subject has decisions of it; else the cache is not named."""
    tasks = tmp_path / "catalog" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "a.yaml").write_text("name: diabetes_progression\ncache: {ttl_s: 300}\n")
    (tasks / "b.yaml").write_text("name: not_asked\ncache: {ttl_s: 600}\n")
    (tasks / "c.yaml").write_text("name: keeps_nothing\n")
    async with service(tmp_path, catalog=tmp_path / "catalog") as calls:
        await calls.append(entry("d1"), entry("d2", patient=18, task="keeps_nothing"))
        (cached,) = [copy for copy in await erased(calls, 17) if "cache" in copy]
        assert cached.startswith("response cache: answers of diabetes_progression,")
        assert "300 s" in cached
        assert not [copy for copy in await erased(calls, 18) if "cache" in copy]


async def test_an_erasure_names_samples_traces_and_the_outbox(tmp_path):
    """Of the subject's tasks, those that may have such a copy, by their names; else none of them."""
    tasks = tmp_path / "catalog" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "a.yaml").write_text(
        "name: diabetes_progression\ndata_class: internal\nfeature_service: served_v1\n"
        "audit_outage: outbox\n"
    )
    (tasks / "b.yaml").write_text("name: secret\ndata_class: restricted\nfeature_service: other\n")
    (tasks / "c.yaml").write_text("name: plain\ndata_class: restricted\n")
    async with service(tmp_path, catalog=tmp_path / "catalog") as calls:
        await calls.append(
            entry("d1"),
            entry("d2", patient=18, task="secret"),
            entry("d3", patient=19, task="plain"),
        )
        await calls.append(entry("d4", record_pb2.RECORD_KIND_REFUSED, patient=20))
        all_three = {"samples", "traces", "outbox"}
        for patient, wanted in ((17, all_three), (18, {"samples"}), (19, set()), (20, all_three)):
            named = {copy.split(" ")[0]: copy for copy in await erased(calls, patient)}
            assert named.keys() & all_three == wanted
            if wanted == all_three:
                assert "served_v1" in named["samples"]
                assert "diabetes_progression" in named["traces"]
                assert "diabetes_progression, unencrypted" in named["outbox"]


async def test_an_erasure_without_a_catalog_names_all_that_may_be(tmp_path):
    """What can't be ruled out is named."""
    async with service(tmp_path) as calls:
        await calls.append(entry("d1"))
        named = " ".join(await erased(calls, 17))
    assert all(word in named for word in ("cache", "samples", "traces", "outbox", "backups"))
