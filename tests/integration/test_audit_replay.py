"""Replay and parity over a whole mesh: the recorded input goes to a real model again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.chassis.errors import FailedPreconditionError, PermissionDeniedError
from services.cli.audit import app
from tests.integration.conftest import DIABETES, LOCAL, REMOTE, TUMOUR, MeshUnderTest, request
from tests.support import refusal
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.router.v1 import router_pb2

pytestmark = pytest.mark.integration

OTHER = router_pb2.REPLAY_PATH_OTHER
INTENT, OUTCOME = record_pb2.RECORD_KIND_INTENT, record_pb2.RECORD_KIND_OUTCOME


async def replay(mesh: MeshUnderTest, decision: str, **more) -> router_pb2.ReplayResponse:
    """Replay as the auditor."""
    async with mesh.router("auditor") as router:
        return await router.Replay(router_pb2.ReplayRequest(decision_id=decision, **more))


async def twinpath(home: Path, *arguments: str) -> tuple[int, str]:
    """Run an audit command against the mesh; return its exit code and what it printed."""
    run = CliRunner().invoke
    result = await asyncio.to_thread(
        run, app, list(arguments), env={"TWINPATH_HOME": str(home), "COLUMNS": "200"}
    )
    return result.exit_code, result.output


async def test_a_decision_is_replayed_on_its_own_path_and_agrees(mesh: MeshUnderTest) -> None:
    """Either path says again what it said, to the same input: the log's HMACs are equal."""
    for path in (LOCAL, REMOTE):
        async with mesh.router() as router:
            first = await router.Infer(request(only_path=path))
        found = await replay(mesh, first.decision_id)
        assert found.agrees
        assert found.same_input
        assert found.replayed_by == first.answered_by
        async with mesh.stub("audit", "auditor") as audit:
            got = await audit.Get(audit_pb2.GetRequest(decision_id=found.decision_id))
        assert [stored.record.kind for stored in got.records] == [INTENT, OUTCOME]
        assert {stored.record.replay_of for stored in got.records} == {first.decision_id}
        assert got.records[1].record.payload_digest == b""


async def test_the_vendor_gets_the_same_body_in_a_replay(mesh: MeshUnderTest) -> None:
    """The wire digest of the replay is that of the decision, and the vendor's log has it twice."""
    async with mesh.router() as router:
        first = await router.Infer(request(only_path=REMOTE))
    found = await replay(mesh, first.decision_id)
    assert found.attempts[-1].wire_digest == first.attempts[-1].wire_digest
    plain = first.attempts[-1].wire_digest
    entries = (await mesh.standin("/admin/log?limit=2"))["entries"]
    assert {e["body_sha256"] for e in entries} == {plain.hex()}


async def test_the_log_has_the_plain_digest_of_a_body_in_the_payload_alone(
    mesh: MeshUnderTest,
) -> None:
    """Who may see payloads can compare with the vendor's log; the record has a keyed digest."""
    async with mesh.router() as router:
        first = await router.Infer(request(only_path=REMOTE))
    async with mesh.stub("audit", "payload_reader") as audit:
        get = audit_pb2.GetRequest(decision_id=first.decision_id, include_payload=True)
        intent, outcome = (await audit.Get(get)).records
    plain = first.attempts[-1].wire_digest
    assert len(plain) == len(outcome.record.attempts[-1].wire_digest) == 32
    assert plain in outcome.payload.reply
    for stored in (intent, outcome):
        assert plain not in stored.record.SerializeToString()


async def test_the_other_path_gets_the_same_input(mesh: MeshUnderTest) -> None:
    """What a vendor answered is asked of the local model, and compared by the task's tolerance."""
    async with mesh.router() as router:
        first = await router.Infer(request(only_path=REMOTE))
    found = await replay(mesh, first.decision_id, path=OTHER)
    assert found.replayed_by.path == LOCAL
    assert found.same_input
    (output,) = found.outputs
    assert output.agrees == (output.max_absolute <= output.tolerance.absolute)
    wide = router_pb2.Tolerance(absolute=1000)
    assert (await replay(mesh, first.decision_id, path=OTHER, tolerance=wide)).agrees


async def test_a_restricted_decision_is_not_replayed_at_a_vendor(
    mesh: MeshUnderTest, mesh_home: Path
) -> None:
    """Not by the RPC, not by a sample: the vendor hears nothing, and the log says why."""
    async with mesh.router() as router:
        first = await router.Infer(request(TUMOUR))
    before = await mesh.standin()
    async with mesh.router("auditor") as router:
        asked = router_pb2.ReplayRequest(decision_id=first.decision_id, path=OTHER)
        error = await refusal(router.Replay(asked))
    assert isinstance(error, PermissionDeniedError)
    assert "restricted_never_leaves" in str(error.metadata)
    code, _ = await twinpath(mesh_home, "parity", TUMOUR)
    assert code == 1
    assert await mesh.standin() == before
    async with mesh.stub("audit", "auditor") as audit:
        kinds = [record_pb2.RECORD_KIND_REFUSED]
        filtered = audit_pb2.Filter(task=TUMOUR, kinds=kinds)
        refused = await audit.Query(audit_pb2.QueryRequest(filter=filtered))
    assert first.decision_id in {stored.record.replay_of for stored in refused.records}


async def test_what_was_erased_is_not_replayed(mesh: MeshUnderTest) -> None:
    """The input is out of reach, and the error says so."""
    async with mesh.router() as router:
        first = await router.Infer(request(patient_id=301))
    asked = request(patient_id=301)
    subject = audit_pb2.Subject(entity=asked.entity, entity_type="diabetes_patient")
    async with mesh.stub("audit", "privacy_officer") as audit:
        await audit.Erase(audit_pb2.EraseRequest(subject=subject, reason="a test"))
    async with mesh.router("auditor") as router:
        request_ = router_pb2.ReplayRequest(decision_id=first.decision_id)
        error = await refusal(router.Replay(request_))
    assert isinstance(error, FailedPreconditionError)
    assert error.reason == "SUBJECT_ERASED"


async def test_only_an_auditor_replays(mesh: MeshUnderTest) -> None:
    """A caller or an operator may not send recorded inputs anywhere."""
    for role in ("caller", "operator", "privacy_officer"):
        async with mesh.router(role) as router:
            error = await refusal(router.Replay(router_pb2.ReplayRequest(decision_id="x")))
        assert isinstance(error, PermissionDeniedError)


async def test_parity_gives_a_verdict_with_an_interval(
    mesh: MeshUnderTest, mesh_home: Path
) -> None:
    """On the recorded path all agree; on the other one a strict tolerance refutes it."""
    async with mesh.router() as router:
        for patient in range(20, 60):
            await router.Infer(request(DIABETES, patient, only_path=LOCAL))
    sample = ("parity", DIABETES, "--sample", "30", "--json")
    code, told = await twinpath(mesh_home, *sample, "--path", "recorded", "--required", "0.85")
    found = json.loads(told)
    assert (code, found["verdict"], found["agreeing"]) == (0, "holds", 30)
    assert 0.85 < found["low"] < found["high"] == 1
    code, told = await twinpath(mesh_home, *sample, "--absolute", "0.0001")
    found = json.loads(told)
    assert (code, found["verdict"]) == (1, "fails")
    assert found["high"] < 0.95
    code, told = await twinpath(mesh_home, "parity", DIABETES, "-n", "3", "--path", "recorded")
    assert code == 3
    assert "undecided" in told
