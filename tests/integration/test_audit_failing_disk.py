"""A real process whose writes begin to fail: it acknowledges nothing more, and exits."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys

import grpc.aio
import pytest

from services.audit.checkpoint import VerifierKey
from services.audit.verify import verify_directory
from tests import support
from tests.chaos import audit_kills
from tests.integration.test_audit_service import entry
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc


async def ready(channel, process):
    """Return when the service answers; fail if it exits before."""
    stub = audit_pb2_grpc.AuditStub(channel)
    while True:
        assert process.returncode is None, "the service exited at its start"
        try:
            await stub.Checkpoint(audit_pb2.CheckpointRequest(), timeout=1)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DATA_LOSS:
                raise
            await asyncio.sleep(0.02)
        else:
            return


@contextlib.asynccontextmanager
async def running(environment, token):
    """The service in a process of its own, with a stub; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.audit", env=environment, cwd=support.ROOT
    )
    try:
        async with support.client(environment["TWINPATH_AUDIT_LISTEN"], token) as channel:
            await asyncio.wait_for(ready(channel, process), 60)
            yield process, audit_pb2_grpc.AuditStub(channel)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.integration
@pytest.mark.timeout(300)
async def test_a_disk_that_fails_stops_the_service(tmp_path):
    """After the first failed write nothing is acknowledged, the process exits, nothing is lost."""
    keys = support.mesh_keys(tmp_path / "mesh")
    environment = audit_kills.environment(tmp_path, keys, support.free_port())
    environment["TWINPATH_AUDIT_CHECKPOINT_INTERVAL_S"] = "3600"
    token = keys.token("service:router", roles=["auditor"])
    acknowledged: dict[str, int] = {}
    async with running(environment, token) as (process, stub):
        failed = False
        for n in range(2_000):
            if n == 20:
                limit = sum(p.stat().st_size for p in (tmp_path / "audit" / "log").glob("*.seg"))
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit + 3_000,) * 2)
            one = entry(f"d{n}", patient=None)
            one.ClearField("payload")
            try:
                answer = await stub.Append(audit_pb2.AppendRequest(entries=[one]), timeout=10)
            except grpc.aio.AioRpcError:
                break
            if answer.results[0].status.code:
                failed = True
            else:
                assert not failed, "acknowledged after a failed write"
                acknowledged[f"d{n}"] = answer.results[0].leaf_index
        assert await asyncio.wait_for(process.wait(), 60) == 1
    assert len(acknowledged) > 20
    async with running(environment, token) as (_, stub):
        for decision, leaf in acknowledged.items():
            found = await stub.Get(audit_pb2.GetRequest(decision_id=decision))
            assert [record.leaf_index for record in found.records] == [leaf]
    key = VerifierKey.parse((tmp_path / "keys" / "audit.pem.vkey").read_text())
    report = verify_directory(tmp_path / "audit" / "log", [key])
    assert report.ok, report.breaks
