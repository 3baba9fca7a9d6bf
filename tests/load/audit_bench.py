"""What the audit log costs: `python -m tests.load.audit_bench`.

Real processes on this machine, real fdatasync, gRPC with identity, records of a usual size. The
bare echo is measured in the same run, so that the ratio says something about other machines, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio

from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.settings import AuditSettings
from services.audit.storage import open_storage
from tests import support
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2, value_pb2

ECHO = """
import asyncio, sys, grpc.aio
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        async def echo(request, context):
            return request
        return grpc.unary_unary_rpc_method_handler(echo)
async def main():
    server = grpc.aio.server(handlers=[Handler()])
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()
try:
    import uvloop; uvloop.run(main())
except ImportError:
    asyncio.run(main())
"""
Call = Callable[[int], Awaitable[object]]


def entry(decision: str, kind: int, patient: int) -> audit_pb2.Entry:
    """A record with a plan of two candidates, one attempt and a payload, as the router's are."""
    local = decision_pb2.CandidateRef(
        id="diabetes_small@1", model="diabetes_small", version="1", path=context_pb2.PATH_LOCAL
    )
    remote = decision_pb2.CandidateRef(
        id="diabetes_large@1",
        model="diabetes_large",
        version="1",
        path=context_pb2.PATH_REMOTE,
        provider="standin",
        region="eu",
    )
    views = [
        decision_pb2.ViewLineage(view=name, version_hash="0" * 16, event_time_unix_us=10**15)
        for name in ("diabetes_baseline", "diabetes_serum")
    ]
    record = record_pb2.Record(
        kind=kind,
        decision_id=decision,
        trace_id=f"{patient:032x}",
        caller=context_pb2.Caller(identity="bench", purpose="bench"),
        task="diabetes_progression",
        data_class=context_pb2.DATA_CLASS_INTERNAL,
        lineage=decision_pb2.Lineage(
            feature_service="diabetes_progression_v1", views=views, code_version="0.1.0"
        ),
        plan=decision_pb2.Plan(
            entries=[
                decision_pb2.PlanEntry(candidate=local, rank=1, predicted_p50_us=600),
                decision_pb2.PlanEntry(candidate=remote, rank=2, predicted_p50_us=20_000),
            ],
            policy_version="0123456789abcdef",
        ),
        candidates=[local],
        event_time_unix_us=10**15,
    )
    made = audit_pb2.Entry(
        context=context_pb2.ItemContext(id=f"{decision}/{kind}"),
        record=record,
        subject=audit_pb2.Subject(
            entity={"patient_id": value_pb2.Value(int64_value=patient)},
            entity_type="diabetes_patient",
        ),
        input_digest=hashlib.sha256(decision.encode()).digest(),
    )
    if kind == record_pb2.RECORD_KIND_OUTCOME:
        record.attempts.add(candidate=local, latency_us=700, bytes_out=80, bytes_in=40)
        made.payload.model_input = bytes(120)
        made.payload.reply = bytes(600)
    return made


@contextlib.asynccontextmanager
async def process(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child process, ended by its handle."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env={**os.environ, **environment}, cwd=support.ROOT
    )
    try:
        yield child
    finally:
        child.terminate()
        await child.wait()


async def ready(call: Call) -> None:
    """Return once a call succeeds."""
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call(-1)
            return
        await asyncio.sleep(0.05)


async def load(call: Call, callers: int, seconds: float) -> tuple[float, list[float]]:
    """Call from so many callers for so long; return calls per second and each latency in s."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []

    async def caller(number: int) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return len(latencies) / (time.perf_counter() - start), sorted(latencies)


def line(name: str, rate: float, unit: str, latencies: list[float]) -> None:
    """Print one measurement."""
    p50 = statistics.median(latencies) * 1000
    p99 = latencies[int(len(latencies) * 0.99)] * 1000
    print(f"{name:<46} {rate:>9,.0f} {unit}   p50 {p50:6.2f} ms  p99 {p99:6.2f} ms", flush=True)  # noqa: T201


async def over_grpc(folder: Path, seconds: float) -> None:
    """Measure the service and the bare echo, in turn, in one run."""
    keys = support.mesh_keys(folder / "mesh")
    port, echo_port = support.free_port(), support.free_port()
    environment = {
        **keys.environment(),
        "TWINPATH_AUDIT_LISTEN": f"127.0.0.1:{port}",
        "TWINPATH_AUDIT_DIRECTORY": str(folder / "audit"),
        "TWINPATH_AUDIT_KEY_STORE": str(folder / "keys" / "subjects.sqlite"),
        "TWINPATH_AUDIT_SIGNING_KEY": str(folder / "keys" / "audit.pem"),
        "TWINPATH_LOG_LEVEL": "ERROR",
    }
    token = keys.token("service:router", roles=["auditor"], lifetime_s=36_000)
    number = 0

    def fresh(kind: int) -> audit_pb2.Entry:
        nonlocal number
        number += 1
        return entry(f"decision-{number:012d}", kind, random.randint(1, 442))

    intent, outcome = record_pb2.RECORD_KIND_INTENT, record_pb2.RECORD_KIND_OUTCOME
    async with (
        process("-c", ECHO, f"127.0.0.1:{echo_port}"),
        process("-m", "services.audit", **environment),
        support.client(f"127.0.0.1:{echo_port}") as echo_channel,
        support.client(f"127.0.0.1:{port}", token) as channel,
    ):
        echo = echo_channel.unary_unary("/bench.Echo/Echo")
        body = entry("decision", outcome, 1).SerializeToString()
        stub = audit_pb2_grpc.AuditStub(channel)

        async def append(*entries: audit_pb2.Entry) -> None:
            answer = await stub.Append(audit_pb2.AppendRequest(entries=entries))
            assert all(result.status.code == 0 for result in answer.results)

        await ready(lambda _: echo(body))
        await ready(lambda _: append(fresh(outcome)))
        await load(lambda _: append(fresh(outcome)), 16, 1.0)
        rate, seen = await load(lambda _: echo(body), 32, seconds)
        line("bare unary echo, 32 callers", rate, "calls/s  ", seen)
        single, seen = await load(lambda _: append(fresh(outcome)), 32, seconds)
        line("OUTCOME with payload one by one, 32 callers", single, "records/s", seen)
        print(f"{'':<46} {single / rate:9.2f} x the bare echo")  # noqa: T201
        single, seen = await load(lambda _: append(fresh(intent)), 32, seconds)
        line("INTENT one by one, 32 callers", single, "records/s", seen)
        print(f"{'':<46} {single / rate:9.2f} x the bare echo")  # noqa: T201
        for size in (16, 64):
            batches, seen = await load(
                lambda _, n=size: append(*(fresh(outcome) for _ in range(n))), 8, seconds
            )
            line(f"OUTCOMEs in batches of {size}, 8 callers", batches * size, "records/s", seen)
        made = [[fresh(outcome) for _ in range(64)] for _ in range(400)]
        start = time.perf_counter()

        async def drain() -> None:
            while made:
                await append(*made.pop())

        await asyncio.gather(*(drain() for _ in range(8)))
        took = time.perf_counter() - start
        print(f"{'  the same, requests made beforehand':<46} {400 * 64 / took:>9,.0f} records/s")  # noqa: T201

        async def decision(_: int) -> None:
            one = fresh(outcome)
            await append(entry(one.record.decision_id, intent, 7))
            await append(one)

        rate, seen = await load(decision, 1, seconds)
        line("what a decision pays: INTENT, then OUTCOME", rate, "decisions", seen)


def at_size(folder: Path, records: int) -> None:
    """Measure restart, proofs and growth of a log of so many records."""
    files = OsFileSystem(folder / "big" / "log")
    journal, _ = Journal.open(files)
    record = entry("decision", record_pb2.RECORD_KIND_OUTCOME, 7).record
    record.input_hmac = record.output_hmac = record.payload_digest = bytes(32)
    written = 0
    start = time.perf_counter()
    while written < records:
        batch = []
        for at in range(written, min(written + 256, records)):
            record.decision_id = f"decision-{at:012d}"
            batch.append(record.SerializeToString(deterministic=True))
        journal.append(batch)
        written += len(batch)
    took = time.perf_counter() - start
    journal.close()
    size = sum(files.size(name) for name in files.names())
    print(f"\n{records:,} records written in batches of 256: {records / took:,.0f} records/s")  # noqa: T201
    print(f"growth: {size / records:,.0f} bytes a record, of which the leaf {len(batch[-1])}")  # noqa: T201
    files.close()
    settings = support.settings_for(
        AuditSettings,
        support.mesh_keys(folder / "keys"),
        directory=folder / "big",
        key_store=folder / "keys" / "subjects.sqlite",
        signing_key=folder / "keys" / "audit.pem",
    )
    for what in ("first start, the index made anew", "restart", "restart after a kill"):
        start = time.perf_counter()
        storage = open_storage(settings, 0)
        took = time.perf_counter() - start
        print(f"{what}: {took:.2f} s")  # noqa: T201
        tree = storage.tree
        if what.startswith("first"):
            storage.save_seen(tree.size, storage.mark_at(tree.size))
        elif what == "restart":
            files.remove("seen")
        storage.close()
    chance = random.Random(1)
    start = time.perf_counter()
    for _ in range(1000):
        tree.inclusion_proof(chance.randrange(records))
    print(f"inclusion proof: {(time.perf_counter() - start) * 1000:.0f} us")  # noqa: T201
    start = time.perf_counter()
    for _ in range(1000):
        tree.consistency_proof(chance.randrange(1, records))
    print(f"consistency proof: {(time.perf_counter() - start) * 1000:.0f} us")  # noqa: T201


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--records", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(over_grpc(Path(folder), given.seconds))
        at_size(Path(folder), given.records)


if __name__ == "__main__":
    main()
