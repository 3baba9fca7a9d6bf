"""The whole mesh, all parts real: one input on both paths, one record, one trace, one effect."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.audit.checkpoint import VerifierKey
from services.audit.verify import verify_directory
from tests.integration.conftest import DIABETES, LOCAL, REMOTE, TUMOUR, MeshUnderTest, request
from tests.support import ROOT, refusal
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, value_pb2
from twinpath.inference import tensors
from twinpath.router.v1 import router_pb2

pytestmark = pytest.mark.integration

EVERY_PROCESS = {
    "twinpath-router",
    "twinpath-features",
    "twinpath-local",
    "twinpath-audit",
    "triton",
}


def output(reply: router_pb2.InferResponse, name: str) -> float:
    """The only value of an output."""
    (found,) = (tensor for tensor in reply.outputs if tensor.name == name)
    return float(tensors.to_numpy(found).reshape(-1)[0])


async def test_both_paths_get_the_same_input(mesh: MeshUnderTest) -> None:
    """The digest is equal on both paths, and the vendor's log holds the body that we recorded."""
    async with mesh.router() as router:
        bmi = {"bmi_now": value_pb2.Value(double_value=27.5)}
        local = await router.Infer(request(only_path=LOCAL, fields=bmi))
        remote = await router.Infer(request(only_path=REMOTE, fields=bmi))
    assert local.answered_by.path == LOCAL
    assert remote.answered_by.path == REMOTE
    assert remote.answered_by.provider == "standin"
    assert len(local.input_digest) == 32
    assert local.input_digest == remote.input_digest
    assert -200 < output(local, "progression") < 600
    assert -200 < output(remote, "progression") < 600
    assert remote.cost.nanos > 0
    (entry,) = (await mesh.standin("/admin/log?limit=1"))["entries"]
    assert entry["body_sha256"] == remote.attempts[-1].wire_digest.hex()


async def test_a_restricted_record_is_answered_locally_and_never_sent(mesh: MeshUnderTest) -> None:
    """The vendor hears nothing of a restricted task, whatever the caller asks for."""
    before = await mesh.standin()
    async with mesh.router() as router:
        reply = await router.Infer(request(TUMOUR))
        error = await refusal(router.Infer(request(TUMOUR, only_path=REMOTE)))
        public = await router.Infer(request(TUMOUR, data_class=context_pb2.DATA_CLASS_PUBLIC))
    after = await mesh.standin()
    assert reply.answered_by.path == public.answered_by.path == LOCAL
    assert 0 <= output(reply, "probability") <= 1
    assert error.reason == "NO_CANDIDATE_ON_PATH"
    assert "restricted_never_leaves" in str(error.metadata)
    assert after["body_bytes"] == before["body_bytes"]


async def test_explain_gives_the_plan_and_calls_nobody(mesh: MeshUnderTest) -> None:
    """Explain names every candidate with its reasons; no model is asked and nothing recorded."""
    before = await mesh.standin()
    async with mesh.router() as router:
        reply = await router.Explain(router_pb2.ExplainRequest(request=request(TUMOUR)))
    ranks = {entry.candidate.path: entry.rank for entry in reply.plan.entries}
    assert ranks == {LOCAL: 1, REMOTE: 0}
    assert len(reply.input_digest) == 32
    assert (await mesh.standin())["body_bytes"] == before["body_bytes"]


async def test_a_decision_is_recorded_and_the_log_proves_it_offline(mesh: MeshUnderTest) -> None:
    """The OUTCOME of a reply is in the log under a signed checkpoint; a copy verifies."""
    async with mesh.router() as router:
        reply = await router.Infer(request())
    async with mesh.stub("audit", "auditor") as audit:
        found = await audit.Get(audit_pb2.GetRequest(decision_id=reply.decision_id))
        await audit.Checkpoint(audit_pb2.CheckpointRequest(now=True))
        proof = await audit.Prove(audit_pb2.ProveRequest(leaf_index=reply.leaf_index))
    kinds = [stored.record.kind for stored in found.records]
    assert kinds == [record_pb2.RECORD_KIND_INTENT, record_pb2.RECORD_KIND_OUTCOME]
    assert found.records[-1].record.trace_id == reply.trace_id
    assert proof.proofs[0].leaf == found.records[-1].record.SerializeToString(deterministic=True)
    layout = mesh.launcher.layout
    text = (layout.keys / "audit" / "checkpoints.key.vkey").read_text()
    keys = [VerifierKey.parse(line) for line in text.splitlines()]
    report = await asyncio.to_thread(verify_directory, layout.audit / "log", keys)
    assert report.ok, report.first
    assert report.last is not None
    assert report.last.size > reply.leaf_index


async def test_the_same_key_gives_the_same_decision(mesh: MeshUnderTest) -> None:
    """Ten copies of one request with one key, all at once, are one decision."""
    async with mesh.router() as router:
        replies = await asyncio.gather(
            *(router.Infer(request(idempotency_key="ten-copies")) for _ in range(10))
        )
        other = await refusal(router.Infer(request(patient_id=18, idempotency_key="ten-copies")))
    assert len({reply.decision_id for reply in replies}) == 1
    assert sum(not reply.repeated for reply in replies) == 1
    assert len({tuple(t.raw for t in reply.outputs) for reply in replies}) == 1
    assert other.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_one_trace_has_every_process_and_hangs_together(mesh: MeshUnderTest) -> None:
    """Router, features with its Redis span, local, Triton's own spans and audit: one tree."""
    async with mesh.router() as router:
        reply = await router.Infer(request(only_path=LOCAL))
    spans = await mesh.spans(reply.trace_id, EVERY_PROCESS)
    assert {span.service for span in spans} >= EVERY_PROCESS
    redis = [s for s in spans if s.service == "twinpath-features" and "db.system" in s.attributes]
    assert redis
    known = {span.span_id for span in spans}
    assert sum(span.parent_id not in known for span in spans) == 1


async def test_a_vendors_call_is_in_the_trace_down_to_the_vendor(mesh: MeshUnderTest) -> None:
    """A decision that tries both paths has spans of both, the vendor's own too."""
    async with mesh.router() as router:
        reply = await router.Infer(request(only_path=REMOTE))
    spans = await mesh.spans(reply.trace_id, {"twinpath-remote", "standin-vendor"})
    by_id = {span.span_id: span for span in spans}
    (vendor,) = [span for span in spans if span.service == "standin-vendor"]
    assert by_id[vendor.parent_id].service == "twinpath-remote"


async def test_the_command_line_asks_the_running_mesh(mesh: MeshUnderTest, mesh_home: Path) -> None:
    """`twinpath infer`, `explain`, `tasks` and `trace` work against a mesh that runs."""

    def twinpath(*arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            env={**kept, "TWINPATH_HOME": str(mesh_home), "COLUMNS": "200"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def ask() -> list[subprocess.CompletedProcess[str]]:
        who = ("--entity", "patient_id=17")
        return [
            twinpath("infer", DIABETES, *who, "--field", "bmi_now=27.5", "--plan"),
            twinpath("explain", TUMOUR, *who),
            twinpath("tasks"),
            twinpath("infer", "no_such_task", *who),
            twinpath("infer", DIABETES),
        ]

    asked, explained, tasks, unknown, incomplete = await asyncio.to_thread(ask)
    assert asked.returncode == 0, asked.stderr
    assert "progression = " in asked.stdout
    assert "restricted_never_leaves" in explained.stdout
    assert DIABETES in tasks.stdout
    assert unknown.returncode == incomplete.returncode == 1
    assert "NOT_FOUND" in unknown.stderr
    assert "INVALID_ARGUMENT" in incomplete.stderr
    assert "patient_id" in incomplete.stderr
