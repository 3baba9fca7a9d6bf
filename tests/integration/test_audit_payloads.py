"""Who may see payloads by the command line, what they see, and that the log keeps who did."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.integration.test_audit_cli import filled, twinpath
from tests.integration.test_audit_service import LOCAL, REMOTE, entry
from twinpath.common.v1 import decision_pb2
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import router_pb2

TENSOR = tensor_pb2.Tensor(
    name="weight_kg", datatype=tensor_pb2.DATATYPE_FP32, shape=[1], raw=b"\0\0\x2c\x42"
)


@pytest.mark.integration
async def test_payloads_are_shown_to_their_readers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`get --payload` opens what a decision was made from; a plain auditor is refused."""
    async with filled(tmp_path, monkeypatch) as calls:
        opened = entry("open")
        opened.payload.model_input = tensor_pb2.ModelInput(tensors=[TENSOR]).SerializeToString()
        opened.payload.reply = router_pb2.InferResponse().SerializeToString()
        await calls.append(opened)
        shown = await asyncio.to_thread(twinpath, "get", "open", "--payload")
        assert "weight_kg = 43" in shown
        assert "weight_kg" not in await asyncio.to_thread(twinpath, "get", "open")
        auditor = calls.keys.token_file("eve", roles=["auditor"])
        monkeypatch.setenv("TWINPATH_TOKEN_FILE", str(auditor))
        refused = await asyncio.to_thread(twinpath, "get", "open", "--payload", code=1)
        assert "may not see payloads" in refused


@pytest.mark.integration
async def test_an_export_with_payloads_is_recorded_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds payloads; the log says who took them and where to, for an erasure to name."""
    file = tmp_path / "taken.jsonl"
    who = ("-e", "patient_id=17", "--type", "diabetes_patient")
    async with filled(tmp_path, monkeypatch):
        await asyncio.to_thread(twinpath, "export", str(file), *who, "--payload")
        taken = [json.loads(line) for line in file.read_text().splitlines()]
        assert {one["record"]["decision_id"] for one in taken} == {"d1", "d2"}
        assert any("reply" in one.get("payload", {}) for one in taken)
        assert str(file) in await asyncio.to_thread(twinpath, "overrides")
        told = await asyncio.to_thread(twinpath, "erase", *who, "--reason", "asked", "--yes")
        assert str(file) in told.replace("\n", "")


@pytest.mark.integration
async def test_what_left_is_shown_with_the_rules_that_let_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`egress` names each rule that the candidate passed, and the policy's version."""
    remote = decision_pb2.CandidateRef(id="far", model="m", version="1", path=2, provider="vendor")
    plan = decision_pb2.Plan(
        entries=[
            decision_pb2.PlanEntry(candidate=remote, rank=1),
            decision_pb2.PlanEntry(candidate=LOCAL, rank=2),
        ],
        policy_version="p7",
        policy_rules=["restricted_never_leaves", "residency_is_kept"],
    )
    attempt = decision_pb2.Attempt(candidate=remote, bytes_out=10)
    async with filled(tmp_path, monkeypatch) as calls:
        await calls.append(entry("out", candidates=[remote], attempts=[attempt], plan=plan))
        shown = await asyncio.to_thread(twinpath, "egress")
    assert "policy p7 admitted it at rank 1" in shown
    assert "restricted_never_leaves, residency_is_kept" in shown


@pytest.mark.integration
async def test_the_body_s_plain_digest_is_shown_with_the_payload_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vendor's own log can be compared with it; the record shows that it has an HMAC."""
    plain = bytes(range(32))
    sent = decision_pb2.Attempt(candidate=REMOTE, bytes_out=10, wire_digest=plain)
    async with filled(tmp_path, monkeypatch) as calls:
        out = entry("out", candidates=[REMOTE], attempts=[sent])
        out.payload.model_input = b""
        out.payload.reply = router_pb2.InferResponse(attempts=[sent]).SerializeToString()
        await calls.append(out)
        opened = await asyncio.to_thread(twinpath, "get", "out", "--payload")
        closed = await asyncio.to_thread(twinpath, "get", "out")
        left = await asyncio.to_thread(twinpath, "egress")
    assert f"SHA-256 {plain.hex()}" in opened
    for shown in (closed, left):
        assert "wire HMAC" in shown
        assert plain.hex()[:16] not in shown
