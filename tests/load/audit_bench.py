"""What the audit log costs: `python -m tests.load.audit_bench`.

Real processes on this machine, real syncs, gRPC with identity, records of a usual size. The bare
echo is measured in the same run, so that the ratio says something about other machines, too; the
rounds alternate, and the medians count. Requests are made before the clock starts: the echo's
caller makes none. CPU is the service's own, all its threads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from services.audit import records as records_of
from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.keystore import KeyStore
from services.audit.settings import AuditSettings
from services.audit.storage import INDEX, LOG, PAYLOADS, Storage, open_storage, payload_digest
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
COLUMNS = ("p50_ms", "p99_ms", "cpu_ms")
# A channel that has failed tries again at once, not after its usual pause.
AT_ONCE = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 20)]
INTENT, OUTCOME = record_pb2.RECORD_KIND_INTENT, record_pb2.RECORD_KIND_OUTCOME
Requests = tuple[bytes, ...]  # what one caller sends, one after the other, before its clock stops
Call = Callable[[], Awaitable[bool]]  # False: there is nothing left to send


def entry(decision: str, kind: record_pb2.RecordKind, patient: int) -> audit_pb2.Entry:
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
    if kind == OUTCOME:
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
        with contextlib.suppress(ProcessLookupError):  # killed before
            child.terminate()
        await child.wait()


async def ready(call: Callable[[], Awaitable[object]]) -> None:
    """Return once a call succeeds."""
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call()
            return
        await asyncio.sleep(0.01)


async def load(call: Call, callers: int, seconds: float) -> tuple[float, list[float]]:
    """Call from so many callers for so long; return calls per second and each latency in s."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []

    async def caller() -> None:
        start = time.perf_counter()
        while start < end and await call():
            now = time.perf_counter()
            latencies.append(now - start)
            start = now

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(latencies) / (time.perf_counter() - start), sorted(latencies)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201


class Rounds:
    """Measurements by name, each taken once a round."""

    def __init__(self) -> None:
        """Begin with none."""
        self._seen: dict[str, list[dict[str, float]]] = {}

    async def take(
        self, name: str, call: Call, callers: int, seconds: float, *, each: int = 1, pid: int = 0
    ) -> None:
        """Measure one thing: so many records in each call, by a process whose CPU counts."""
        before = cpu_s(pid) if pid else 0.0
        rate, latencies = await load(call, callers, seconds)
        count = len(latencies) * each
        self._seen.setdefault(name, []).append(
            {
                "per_s": rate * each,
                "p50_ms": statistics.median(latencies) * 1e3,
                "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
                "cpu_ms": (cpu_s(pid) - before) / count * 1e3 if pid else 0.0,
            }
        )

    def medians(self) -> dict[str, dict[str, float]]:
        """Return the median of each figure."""
        return {
            name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
            for name, rounds in self._seen.items()
        }


def service_environment(folder: Path, keys: support.MeshKeys, port: int) -> dict[str, str]:
    """Return what an audit service in a folder runs with."""
    return {
        **keys.environment(),
        "TWINPATH_AUDIT_LISTEN": f"127.0.0.1:{port}",
        "TWINPATH_AUDIT_DIRECTORY": str(folder / "audit"),
        "TWINPATH_AUDIT_KEY_STORE": str(folder / "keys" / "subjects.sqlite"),
        "TWINPATH_AUDIT_SIGNING_KEY": str(folder / "keys" / "audit.pem"),
        "TWINPATH_LOG_LEVEL": "ERROR",
    }


class Maker:
    """Makes requests that nobody sent before."""

    def __init__(self) -> None:
        """Begin with the first decision."""
        self._number = 0

    def entry(self, kind: record_pb2.RecordKind = OUTCOME) -> audit_pb2.Entry:
        """A new decision's record."""
        self._number += 1
        return entry(f"decision-{self._number:012d}", kind, random.randint(1, 442))

    def one(self, kind: record_pb2.RecordKind = OUTCOME) -> Requests:
        """A record by itself."""
        return (_append(self.entry(kind)),)

    def batch(self) -> Requests:
        """Sixty-four OUTCOMEs."""
        return (_append(*(self.entry() for _ in range(64))),)

    def coalesced(self) -> Requests:
        """Six decisions, as the router appends them."""
        ends = [self.entry() for _ in range(6)]
        return (_append(*map(intent_of, ends), *ends),)

    def decision(self) -> Requests:
        """An INTENT, then its OUTCOME."""
        end = self.entry()
        return _append(intent_of(end)), _append(end)


def intent_of(outcome: audit_pb2.Entry) -> audit_pb2.Entry:
    """The INTENT before an OUTCOME."""
    return entry(outcome.record.decision_id, INTENT, 7)


def _append(*entries: audit_pb2.Entry) -> bytes:
    return audit_pb2.AppendRequest(entries=entries).SerializeToString()


async def over_grpc(folder: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Measure the service and the bare echo by turns, in one run."""
    keys = support.mesh_keys(folder / "mesh")
    port, echo_port = support.free_port(), support.free_port()
    token = keys.token("service:router", roles=["auditor"], lifetime_s=36_000)
    make, seen = Maker(), Rounds()
    async with (
        process("-c", ECHO, f"127.0.0.1:{echo_port}") as echoing,
        process("-m", "services.audit", **service_environment(folder, keys, port)) as service,
        support.client(f"127.0.0.1:{echo_port}") as echo_channel,
        support.client(f"127.0.0.1:{port}") as channel,
    ):
        bare: Any = echo_channel.unary_unary("/bench.Echo/Echo")
        body = entry("decision", OUTCOME, 1).SerializeToString()
        send: Any = channel.unary_unary("/twinpath.audit.v1.Audit/Append")
        identity = (("authorization", f"Bearer {token}"),)

        async def echo() -> bool:
            return bool(await bare(body))

        def appending(made: list[Requests]) -> Call:
            async def append() -> bool:
                if not made:
                    return False
                for request in made.pop():
                    answer = await send(request, timeout=30, metadata=identity)
                    results = audit_pb2.AppendResponse.FromString(answer).results
                    assert all(result.status.code == 0 for result in results)
                return True

            return append

        await ready(echo)
        await ready(appending([make.one() for _ in range(10_000)]))
        await load(appending([make.one() for _ in range(3_000)]), 16, 1.0)
        plan: list[tuple[str, Callable[[], Requests], int, int, int]] = [
            ("OUTCOME with payload one by one, 32 callers", make.one, 32, 1, 5_000),
            ("INTENT one by one, 32 callers", lambda: make.one(INTENT), 32, 1, 5_000),
            ("OUTCOMEs in batches of 64, 8 callers", make.batch, 8, 64, 150),
            ("decisions as the router appends them, 6 a call", make.coalesced, 2, 6, 600),
            ("what a lone decision pays: INTENT, then OUTCOME", make.decision, 1, 1, 1_000),
        ]
        for _ in range(rounds):
            await seen.take("bare unary echo, 32 callers", echo, 32, seconds, pid=echoing.pid)
            for name, one, callers, each, at_most_per_s in plan:
                call = appending([one() for _ in range(int(at_most_per_s * seconds))])
                await seen.take(name, call, callers, seconds, each=each, pid=service.pid)
    return seen.medians()


async def killed_under_load(folder: Path, keys: support.MeshKeys) -> float:
    """Run the service on a log, append as fast as it takes, and kill it.

    Returns the seconds from the process's start to its first answer.
    """
    port = support.free_port()
    token = keys.token("service:router", roles=["auditor"], lifetime_s=36_000)
    start = time.perf_counter()
    async with (
        process("-m", "services.audit", **service_environment(folder, keys, port)) as service,
        support.client(f"127.0.0.1:{port}", token, options=AT_ONCE) as channel,
    ):
        stub = audit_pb2_grpc.AuditStub(channel)
        await ready(lambda: stub.Checkpoint(audit_pb2.CheckpointRequest()))
        answered = time.perf_counter() - start

        async def caller(name: int) -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                for at in range(0, 100_000, 64):
                    made = [entry(f"late-{start}-{name}-{at + n}", OUTCOME, n) for n in range(64)]
                    await stub.Append(audit_pb2.AppendRequest(entries=made))

        calling = [asyncio.create_task(caller(n)) for n in range(4)]
        await asyncio.sleep(6.0)
        service.send_signal(signal.SIGKILL)
        await asyncio.gather(*calling)
    return answered


def at_size(folder: Path, records: int) -> dict[str, float]:
    """Measure restart, proofs and growth of a log of so many records, payloads and all."""
    keys = support.mesh_keys(folder / "mesh")
    store = KeyStore(folder / "keys" / "subjects.sqlite")
    of_subject = store.ensure(["a subject"])["a subject"]
    files, payload_files = (OsFileSystem(folder / "audit" / name) for name in (LOG, PAYLOADS))
    journal, _ = Journal.open(files)
    payloads, _ = Journal.open(payload_files, hasher=payload_digest, watermark=False)
    written = 0
    while written < records:
        sealed = [
            records_of.seal(entry(f"decision-{at // 2:012d}", kind, 7), of_subject, at)
            for at, kind in zip(
                range(written, min(written + 256, records)), [INTENT, OUTCOME] * 128, strict=False
            )
        ]
        payloads.append([item.payload for item in sealed if item.payload])
        journal.append([item.leaf for item in sealed])
        written += len(sealed)
    found = {
        "log_bytes_per_decision": 2 * sum(map(files.size, files.names())) / records,
        "payload_bytes_per_decision": (
            2 * sum(map(payload_files.size, payload_files.names())) / records
        ),
    }
    for opened in (journal, payloads, files, payload_files, store):
        opened.close()
    settings = support.settings_for(
        AuditSettings,
        keys,
        directory=folder / "audit",
        key_store=folder / "keys" / "subjects.sqlite",
        signing_key=folder / "keys" / "audit.pem",
    )

    def opened_in(name: str) -> Storage:
        start = time.perf_counter()
        storage = open_storage(settings, 0)
        found[name] = time.perf_counter() - start
        return storage

    storage = opened_in("first_start_s")
    size = storage.tree.size
    storage.save_seen(size, storage.mark_at(size))
    storage.save_tree()
    storage.close()
    opened_in("restart_s").close()
    asyncio.run(killed_under_load(folder, keys))
    found["first_answer_after_kill_s"] = asyncio.run(killed_under_load(folder, keys))
    storage = opened_in("restart_after_kill_s")
    tree, journal = storage.tree, storage.journal
    found["index_bytes_per_decision"] = 2 * (folder / "audit" / INDEX).stat().st_size / tree.size
    chance = random.Random(1)
    for name, prove in (
        ("inclusion_proof_us", lambda: tree.inclusion_proof(chance.randrange(records))),
        ("consistency_proof_us", lambda: tree.consistency_proof(chance.randrange(1, records))),
        ("read_record_us", lambda: journal.read(chance.randrange(records))),
    ):
        start = time.perf_counter()
        for _ in range(1000):
            prove()
        found[name] = (time.perf_counter() - start) * 1e3
    found["records"] = tree.size
    storage.close()
    return found


def targets(rows: dict[str, dict[str, float]], sized: dict[str, float]) -> list[tuple[str, bool]]:
    """Return each target with what was found, and whether it was met."""
    echo = rows["bare unary echo, 32 callers"]["per_s"]
    rate = rows["OUTCOMEs in batches of 64, 8 callers"]["per_s"]
    judged = [(f"{rate:,.0f} durable records/s in batches; wanted: 4,000", rate >= 4_000)]
    for name in ("OUTCOME with payload one by one, 32 callers", "INTENT one by one, 32 callers"):
        ratio = rows[name]["per_s"] / echo
        judged.append((f"{name}: {ratio:.2f} x the bare echo; wanted: 0.5", ratio >= 0.5))
    for name, what in (
        ("restart_s", "the log open"),
        ("restart_after_kill_s", "the log open after a kill"),
        ("first_answer_after_kill_s", "from a process's start, after a kill, to its first answer"),
    ):
        seconds = sized[name]
        text = f"{what} at {sized['records']:,.0f} records: {seconds:.2f} s; wanted: 2"
        judged.append((text, seconds <= 2.0))
    return judged


def report(rows: dict[str, dict[str, float]], sized: dict[str, float]) -> bool:
    """Print what was measured, and the targets; tell whether all are met."""
    say(f"{'':<50} {'per s':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>8}")
    for name, row in rows.items():
        rest = [f"{row[key]:8.2f}" if row.get(key) else " " * 8 for key in COLUMNS]
        say(f"{name:<50} {row['per_s']:8,.0f} {' '.join(rest)}")
    say("")
    for name, value in sized.items():
        say(f"{name.replace('_', ' '):<50} {value:12,.2f}")
    say("")
    judged = targets(rows, sized)
    for text, met in judged:
        say(f"{'met    ' if met else 'NOT MET'}  {text}")
    return all(met for _, met in judged)


def main() -> int:
    """Measure and print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each thing in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(".twinpath/bench/audit.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(over_grpc(Path(folder) / "calls", given.seconds, given.rounds))
        sized = at_size(Path(folder) / "big", given.records)
    held = report(rows, sized)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"rows": rows, "size": sized}, indent=2) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
