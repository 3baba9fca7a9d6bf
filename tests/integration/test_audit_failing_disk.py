"""A real process whose writes begin to fail: it acknowledges nothing more, and exits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import sys
from functools import partial

import grpc.aio
import pytest

from services.audit import storage
from services.audit.checkpoint import VerifierKey
from services.audit.filesystem import OsFileSystem
from services.audit.verify import verify_directory
from services.chassis.errors import ResourceExhaustedError, from_status
from tests import support
from tests.chaos import audit_kills
from tests.integration.test_audit_service import entry, service
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc


class Filled:
    """A file on a disk that is full while `full` says so, and takes half of what is reserved."""

    def __init__(self, out, full) -> None:
        self._out, self._full = out, full
        self.write, self.cut, self.close = out.write, out.cut, out.close

    def reserve(self, size) -> None:
        """Reserve all, or less."""
        self._out.reserve(size - 30 if self._full() else size)
        if self._full():
            raise OSError(errno.ENOSPC, "no space")


async def test_a_disk_that_was_full_for_a_moment_moves_no_payload(tmp_path, monkeypatch):
    """Payloads fit and their records don't: later decisions are found, replies and all.

    Now, after a restart, and with an index that was made anew.
    """
    full, real = set(), OsFileSystem.writer

    def writer(files, name):
        return Filled(real(files, name), lambda: files.directory.name in full)

    monkeypatch.setattr(OsFileSystem, "writer", writer)
    monkeypatch.setattr(storage, "Limits", partial(storage.Limits, reserved_bytes=1))
    replies = {}

    async def check(calls):
        router, auditor = await calls.by("service:router"), await calls.by("auditor")
        for decision, reply in replies.items():
            get = audit_pb2.GetRequest(decision_id=decision, include_payload=True)
            found = (await router.Get(get, timeout=10)).records
            assert [stored.payload.reply for stored in found] == [reply]
        answer = await auditor.Query(audit_pb2.QueryRequest(), timeout=10)
        assert [stored.record.decision_id for stored in answer.records] == list(replies)

    async with service(tmp_path) as calls:
        for n in range(12):
            full = {"log"} if n in (2, 5, 6) else {"payloads"} if n == 8 else set()
            entries = [entry(f"d{n}-{k}") for k in range(n % 3 + 1)]
            results = await calls.append(*entries)
            errors = [from_status(result.status) for result in results]
            if full:
                assert all(isinstance(error, ResourceExhaustedError) for error in errors)
                assert {error.reason for error in errors} == {"LOG_DISK_FULL"}
            else:
                assert errors == [None] * len(entries)
                replies |= {e.record.decision_id: e.payload.reply for e in entries}
        await check(calls)
        assert (await calls.append(entry("d2-0")))[0].status.code == 0  # refused, not lost
        replies["d2-0"] = b"a reply to d2-0"
    async with service(tmp_path) as calls:
        await check(calls)
    (tmp_path / "audit" / "index.sqlite").unlink()
    async with service(tmp_path) as calls:
        await check(calls)


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
