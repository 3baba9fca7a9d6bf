"""Batch jobs through real processes: killed in between, resumed, recorded with their costs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import from_status
from services.cli.embedded.process import ManagedProcess
from tests.integration.canary_mesh import RESTRICTED, World, marked, mesh
from tests.support import ROOT, client
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from twinpath.common.v1 import decision_pb2
from twinpath.inference import tensors
from twinpath.router.v1 import jobs_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ITEMS, KEPT = 40, 5  # of these the last few are restricted
KILLED = ("router", "remote")
Kinds = record_pb2.RecordKind


def job_of(count: int, restricted: int) -> jobs_pb2.SubmitJobRequest:
    """A job of marked texts; the last ones are restricted."""
    request = jobs_pb2.SubmitJobRequest(task="whole", idempotency_key="job")
    for number in range(count):
        one = marked(number, "whole")
        item = request.items.add(id=str(number), entity=one.entity, fields=one.fields)
        if number >= count - restricted:
            item.data_class = RESTRICTED
    return request


async def ended(world: World, job_id: str) -> jobs_pb2.Job:
    """The job once it has ended."""
    while True:
        asked = jobs_pb2.GetJobRequest(job_id=job_id)
        job = (await world.jobs.GetJob(asked, timeout=10, wait_for_ready=True)).job
        if job.end_time_unix_us:
            return job
        await asyncio.sleep(0.1)


async def records(world: World, decisions: list[str]) -> tuple[list[Any], int]:
    """The log's records of some decisions, and how many refusals there are at all."""
    token = world.keys.tokens["auditor"].read_text().strip()
    async with client(world.wiring.services["audit"], token) as channel:
        stub = audit_pb2_grpc.AuditStub(channel)
        found = []
        for decision in decisions:
            reply = await stub.Get(audit_pb2.GetRequest(decision_id=decision), timeout=10)
            found += [stored.record for stored in reply.records]
        wanted = audit_pb2.Filter(kinds=[record_pb2.RECORD_KIND_REFUSED])
        refused = await stub.Query(audit_pb2.QueryRequest(filter=wanted), timeout=10)
    return found, len(refused.records)


async def kill(processes: list[ManagedProcess]) -> None:
    """KILL, and start again."""
    for process in processes:
        process.kill()
    for process in processes[::-1]:
        await process.start()


@pytest.mark.parametrize("sent", [True, False])
async def test_a_job_survives_that_router_and_remote_are_killed(tmp_path: Path, sent: bool) -> None:
    """Whether the vendor has it already or not: one batch, one answer and one record for each item.

    Restricted items stay here, refused one by one; the others cost what a batch costs.
    """
    async with mesh(tmp_path, policy=True, TWINPATH_STANDIN_BATCH_LOOKS="6") as world:
        await world.well()
        await world.forget()
        router, remote = (world.processes[name] for name in KILLED)
        if not sent:
            remote.kill()
        job = (await world.jobs.SubmitJob(job_of(ITEMS, KEPT), timeout=30)).job
        assert job.state == jobs_pb2.JOB_STATE_RUNNING
        assert bool(job.parts[0].vendor_batch_id) == sent
        await kill([router, remote])
        job = await ended(world, job.id)
        again = (await world.jobs.SubmitJob(job_of(ITEMS, KEPT), timeout=30)).job
        asked = jobs_pb2.ListJobResultsRequest(job_id=job.id)
        results = [r.result async for r in world.jobs.ListJobResults(asked, timeout=30)]
        answered = [r.response for r in results if r.HasField("response")]
        found, refused = await records(world, [reply.decision_id for reply in answered])
        received = await world.received()
        await world.infer([(0, marked(0, "whole", only_path=2))])  # a single call, for its price
    counts = (job.state, job.succeeded, job.failed, job.refused)
    assert counts == (jobs_pb2.JOB_STATE_ENDED, ITEMS - KEPT, 0, KEPT)
    assert again == job
    assert [r.id for r in results] == [str(n) for n in range(ITEMS)]
    assert {from_status(r.status).reason for r in results[-KEPT:]} == {"POLICY_REFUSED"}
    for result in results[:-KEPT]:
        (text,) = tensors.decode_bytes(result.response.outputs[0].raw)
        assert f"CANARY-{int(result.id):06}" in text.decode()
    kinds = Counter(Kinds.Name(record.kind) for record in found)
    assert kinds == dict.fromkeys(("RECORD_KIND_INTENT", "RECORD_KIND_OUTCOME"), ITEMS - KEPT)
    assert refused == KEPT
    outcomes = [r for r in found if r.kind == record_pb2.RECORD_KIND_OUTCOME]
    for record in outcomes:
        (attempt,) = record.attempts
        assert attempt.kind == decision_pb2.ATTEMPT_KIND_BULK
        assert attempt.wire_digest
        assert attempt.cost.basis == decision_pb2.COST_BASIS_REPORTED
        price = 10_000 * attempt.input_tokens + 20_000 * attempt.output_tokens
        assert attempt.cost.nanos * 2 == price > 0
    assert job.cost.nanos == sum(record.attempts[0].cost.nanos for record in outcomes)
    posted = Counter(body[:40].split(b'"')[3] for body in received if body.startswith(b'["POST"'))
    assert posted == {b"/v1/files": 1, b"/v1/batches": 1}
    deleted = sum(body.startswith(b'["DELETE", "/v1/files/') for body in received)
    assert deleted == 2  # requests and answers: the vendor keeps neither
    assert sum(body.count(b"CANARY") for body in received) == 0


def twinpath(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a caller of this mesh."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    named = {
        "TWINPATH_ROUTER_ADDRESS": world.wiring.services["router"],
        "TWINPATH_TOKEN_FILE": str(world.keys.tokens["caller"]),
        "COLUMNS": "160",
    }
    return subprocess.run(
        [sys.executable, "-m", "services.cli", "jobs", *arguments],
        env={**kept, **named},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_the_command_submits_a_file_and_writes_its_results(tmp_path: Path) -> None:
    """submit, get, list, results, cancel; a wrong line is named."""
    async with mesh(tmp_path, policy=True) as world:
        await world.well()
        file = tmp_path / "items.jsonl"
        lines = [
            {"id": "a", "entity": {"note_id": "n-1"}, "fields": {"note": "One word."}},
            {"entity": {"note_id": "n-2"}, "fields": {"note": "Two."}, "data_class": "restricted"},
        ]
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

        async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return await asyncio.to_thread(twinpath, world, *arguments)

        made = await run("submit", str(file), "--task", "whole", "--json")
        job = json.loads(made.stdout)["id"]
        shown = await run("get", job, "--wait")
        listed = await run("list")
        out = tmp_path / "results.jsonl"
        written = await run("results", job, "--out", str(out))
        late = await run("cancel", job)
        file.write_text('{"id": "a", "enttiy": {}}\n')
        wrong = await run("submit", str(file), "--task", "whole")
        unknown = await run("get", "job-0")
    assert "ended" in shown.stdout
    assert job in listed.stdout
    assert "2 results" in written.stdout
    first, second = map(json.loads, out.read_text().splitlines())
    assert first["id"] == "a"
    assert "One word." in first["outputs"]["text_output"][0]
    assert first["cost_nanos"] > 0
    assert (second["id"], second["error"]["reason"]) == ("2", "POLICY_REFUSED")
    assert "ended" in late.stdout
    assert wrong.returncode == 2
    assert "line 1" in wrong.stderr
    assert "enttiy" in wrong.stderr
    assert unknown.returncode == 1
    assert "JOB_UNKNOWN" in unknown.stderr
