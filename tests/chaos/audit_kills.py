"""Kill -9 of the audit service and of the router, by turns, under load.

What was acknowledged must be in the log afterwards, and a decision must have one effect only: a
repeated call gets the very answer that the first one got, though the model here gives another one
each time it is asked. Real processes, real files, a real state store; the model alone is a
stand-in, in this process. This shows process crashes only: the page cache survives them. What a
power failure does is shown on a simulated disk (audit_crashes.py).

`make chaos` kills a thousand times, a hundred times in each log, and checks each log at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from services.audit.checkpoint import VerifierKey
from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.verify import verify_log
from services.chassis.settings import ServiceSettings
from services.cli.embedded.ports import free_ports
from services.cli.embedded.valkey import Valkey
from tests import support
from tests.chaos.warm import Warm
from tests.fakes import FakeInference, FakeModel, build_inference
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from twinpath.common.v1 import context_pb2, value_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import router_pb2, router_pb2_grpc

ALREADY_EXISTS = 6
VICTIMS = ("audit", "router")
APPENDERS, CALLERS, BATCH = 2, 8, 100
REST_S = 0.1  # after each batch, so that the router's decisions come through as well
TASK = """
name: kill_test
version: "1"
summary: Another answer each time.
data_class: internal
entity: {type: thing, keys: {thing_id: int64}}
fields: {x: {type: double}}
inputs: [{name: x, datatype: FP32, shape: [1, 1], from: ["field:x"]}]
outputs: [{name: x, datatype: FP32, shape: [1, 1]}]
candidates: [{id: counter, path: local, model: counter, version: "1"}]
"""


@dataclass
class Counts:
    """What a run counted, for the table."""

    kills: int = 0
    killed_audit: int = 0
    killed_router: int = 0
    acknowledged: int = 0
    decisions: int = 0
    repeated: int = 0
    checkpoints: int = 0


@dataclass
class Seen:
    """What was seen from outside.

    Attributes:
        outcomes: the leaf that was given as a decision's OUTCOME.
        intents: (decision, leaf) of INTENTs.
        replies: what the router answered to an idempotency key: decision id and output.
        notes: checkpoints, as a witness keeps them.
        forks: what must not be.
        since: batches of appends and replies of the router since the last start.
    """

    counts: Counts = field(default_factory=Counts)
    outcomes: dict[str, int] = field(default_factory=dict)
    intents: list[tuple[str, int]] = field(default_factory=list)
    replies: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    forks: list[str] = field(default_factory=list)
    since: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))


def environment(folder: Path, keys: support.MeshKeys, port: int) -> dict[str, str]:
    """Return the audit service's environment."""
    return {
        **os.environ,
        **keys.environment(),
        "PYTHONPATH": os.pathsep.join((str(support.ROOT), str(support.ROOT / "protos"))),
        "TWINPATH_AUDIT_LISTEN": f"127.0.0.1:{port}",
        "TWINPATH_AUDIT_DIRECTORY": str(folder / "audit"),
        "TWINPATH_AUDIT_KEY_STORE": str(folder / "keys" / "subjects.sqlite"),
        "TWINPATH_AUDIT_SIGNING_KEY": str(folder / "keys" / "audit.pem"),
        "TWINPATH_AUDIT_CHECKPOINT_INTERVAL_S": "0.05",
        "TWINPATH_AUDIT_SEGMENT_RECORDS": "5000",
        "TWINPATH_AUDIT_MIN_FREE_BYTES": "0",
        "TWINPATH_LOG_LEVEL": "ERROR",
    }


class Counter:
    """A model that never gives the same answer twice."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self, given: Sequence[tensor_pb2.Tensor]) -> Sequence[tensor_pb2.Tensor]:
        """Return the next number, as the given tensor."""
        self._number += 1
        answer = tensor_pb2.Tensor()
        answer.CopyFrom(given[0])
        answer.raw = struct.pack("<f", self._number)
        return [answer]


@dataclass
class World:
    """The two services that get killed, and what they need around them."""

    folder: Path
    warm: dict[str, Warm]
    stub: audit_pb2_grpc.AuditStub
    router: router_pb2_grpc.RouterStub


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """Start everything, with an empty log in `folder`."""
    keys = support.mesh_keys(folder / "mesh")
    audit_port, router_port, state_port, nobody = free_ports(4)
    _write_catalog(folder / "catalog")
    shape = [("x", tensors.FP32, (1, 1))]
    fake = FakeInference(models=[FakeModel("counter", shape, compute=Counter())])
    audit_at, router_at = f"127.0.0.1:{audit_port}", f"127.0.0.1:{router_port}"
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(Valkey("state", folder / "state", state_port))
        local = await stack.enter_async_context(
            support.start_service(
                support.settings_for(ServiceSettings, keys), build_inference(fake)
            )
        )
        shared = environment(folder, keys, audit_port)
        of_router = {
            "TWINPATH_ROUTER_LISTEN": router_at,
            "TWINPATH_ROUTER_TOKEN_FILE": str(
                keys.token_file("service:router", lifetime_s=864_000)
            ),
            "TWINPATH_FEATURES_ADDRESS": f"127.0.0.1:{nobody}",
            "TWINPATH_LOCAL_ADDRESS": local.address,
            "TWINPATH_REMOTE_ADDRESS": f"127.0.0.1:{nobody}",
            "TWINPATH_AUDIT_ADDRESS": audit_at,
            "TWINPATH_STATE_URL": state.url,
            "TWINPATH_CATALOG": str(folder / "catalog"),
            "TWINPATH_ROUTER_REFRESH_S": "0.2",
        }
        warm = {
            "audit": await stack.enter_async_context(Warm("services.audit", shared)),
            "router": await stack.enter_async_context(
                Warm("services.router", {**shared, **of_router})
            ),
        }
        for service in warm.values():
            await service.start()
        writer = keys.token("service:router", lifetime_s=864_000, roles=["auditor"])
        caller = keys.token("caller", lifetime_s=864_000, roles=["caller"])
        # A channel that has failed must try again at once, not after its usual pause.
        quick = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        to_audit = await stack.enter_async_context(support.client(audit_at, writer, options=quick))
        to_router = await stack.enter_async_context(
            support.client(router_at, caller, options=quick)
        )
        yield World(
            folder,
            warm,
            audit_pb2_grpc.AuditStub(to_audit),
            router_pb2_grpc.RouterStub(to_router),
        )


def _write_catalog(folder: Path) -> None:
    (folder / "tasks").mkdir(parents=True)
    (folder / "policies").mkdir()
    (folder / "tasks" / "kill_test.yaml").write_text(TASK)
    (folder / "policies" / "base.yaml").write_text(
        "rules:\n  - {id: any, message: Any., require: 'true'}\n"
    )


def _entries(decision: str, thing: int) -> list[audit_pb2.Entry]:
    subject = audit_pb2.Subject(entity={"thing_id": value_pb2.Value(int64_value=thing)})
    made = [
        audit_pb2.Entry(
            context=context_pb2.ItemContext(id=f"{decision}/{kind}"),
            record=record_pb2.Record(kind=kind, decision_id=decision, task="t"),
            subject=subject,
            input_digest=bytes(32),
        )
        for kind in (record_pb2.RECORD_KIND_INTENT, record_pb2.RECORD_KIND_OUTCOME)
    ]
    made[1].payload.reply = decision.encode()
    return made


async def _appender(stub: audit_pb2_grpc.AuditStub, name: str, seed: float, seen: Seen) -> None:
    """Append decisions in batches; a batch that got no answer is sent again, as it was."""
    chance = random.Random(seed)
    number = 0
    while True:
        decisions = [f"{name}-{number + n}" for n in range(BATCH)]
        number += BATCH
        made = [e for d in decisions for e in _entries(d, chance.randint(1, 50))]
        while True:
            try:
                answer = await stub.Append(audit_pb2.AppendRequest(entries=made), timeout=5)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
                continue
            break
        for decision, intent, outcome in zip(
            decisions, answer.results[::2], answer.results[1::2], strict=True
        ):
            _note(seen, decision, intent, outcome)
        seen.since["audit"] += 1
        await asyncio.sleep(REST_S)


def _note(
    seen: Seen, decision: str, intent: audit_pb2.AppendResult, outcome: audit_pb2.AppendResult
) -> None:
    if intent.status.code == 0:
        seen.intents.append((decision, intent.leaf_index))
        seen.counts.acknowledged += 1
    if outcome.status.code == 0:
        seen.counts.acknowledged += 1
    elif outcome.status.code == ALREADY_EXISTS:
        seen.counts.repeated += 1
        if outcome.existing.payload.reply != decision.encode():
            seen.forks.append(f"{decision}: the reply that came first is not its own")
    else:
        return
    before = seen.outcomes.setdefault(decision, outcome.leaf_index)
    if before != outcome.leaf_index:
        seen.forks.append(f"{decision}: OUTCOME {before} and {outcome.leaf_index}")


async def _ask(router: router_pb2_grpc.RouterStub, key: str) -> tuple[str, bytes]:
    """Ask until there is an answer: decision id and output."""
    request = router_pb2.InferRequest(
        task="kill_test",
        entity={"thing_id": value_pb2.Value(int64_value=len(key))},
        fields={"x": value_pb2.Value(double_value=1.0)},
        idempotency_key=key,
    )
    while True:
        try:
            reply = await router.Infer(request, timeout=1.0)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.02)
            continue
        return reply.decision_id, reply.outputs[0].raw


async def _caller(
    router: router_pb2_grpc.RouterStub, name: str, chance: random.Random, seen: Seen
) -> None:
    """Ask the router, one decision after the other, and now and then one again."""
    number = 0
    while True:
        again = seen.replies and chance.random() < 0.1
        key = chance.choice(list(seen.replies)) if again else f"{name}-{number}"
        number += 1
        _keep(seen, key, await _ask(router, key))
        seen.since["router"] += 1


def _keep(seen: Seen, key: str, reply: tuple[str, bytes]) -> None:
    before = seen.replies.get(key)
    if before is None:
        seen.replies[key] = reply
        seen.counts.acknowledged += 1
        seen.counts.decisions += 1
        return
    seen.counts.repeated += 1
    if before != reply:
        seen.forks.append(f"{key}: answered {before}, then {reply}")


async def _witness(stub: audit_pb2_grpc.AuditStub, seen: Seen) -> None:
    """Keep some of the checkpoints that the service gave out."""
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            answer = await stub.Checkpoint(audit_pb2.CheckpointRequest(now=True), timeout=5)
            seen.notes.append(answer.note)
        await asyncio.sleep(0.2)


async def run(folder: Path, kills: int, seed: int, acknowledged: int = 0) -> Counts:
    """Kill so many times, with at least so many acknowledgements, and check everything.

    Raises:
        AssertionError: something acknowledged is missing or changed, a decision has two
            OUTCOMEs or two answers, a checkpoint that was given out doesn't fit the log, or a
            service didn't come back.
    """
    chance, seen = random.Random(seed), Seen()
    each = max(acknowledged // kills, 200)
    async with world(folder) as mesh, asyncio.timeout(60 + 30 * kills):
        tasks: list[asyncio.Task[None]] = [asyncio.create_task(_witness(mesh.stub, seen))]
        for n in range(APPENDERS):
            work = _appender(mesh.stub, f"b{n}", chance.random(), seen)
            tasks.append(asyncio.create_task(work))
        for n in range(CALLERS):
            asking = _caller(mesh.router, f"c{n}", random.Random(chance.random()), seen)
            tasks.append(asyncio.create_task(asking))
        for life in range(kills):
            await _busy(tasks, seen, (life + 1) * each)
            await asyncio.sleep(chance.uniform(0.0, 0.2))
            victim = VICTIMS[life % len(VICTIMS)]
            await mesh.warm[victim].kill()
            seen.counts.kills += 1
            _add(seen.counts, f"killed_{victim}", 1)
            seen.since = dict.fromkeys(VICTIMS, 0)
            await mesh.warm[victim].start()
        await _busy(tasks, seen, acknowledged)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for key in chance.sample(sorted(seen.replies), min(100, len(seen.replies))):
            _keep(seen, key, await _ask(mesh.router, key))
    seen.counts.checkpoints = len(seen.notes)
    await asyncio.to_thread(check, folder, seen)
    return seen.counts


def _add(counts: Counts, name: str, more: int) -> None:
    setattr(counts, name, getattr(counts, name) + more)


async def _busy(tasks: Sequence[asyncio.Task[None]], seen: Seen, wanted: int) -> None:
    """Return when the last start is over for all, and so much was acknowledged."""
    while (
        seen.since["audit"] < APPENDERS
        or seen.since["router"] < CALLERS
        or seen.counts.acknowledged < wanted
    ):
        await asyncio.sleep(0.02)
        for task in tasks:
            if task.done():
                task.result()


def check(folder: Path, seen: Seen) -> None:
    """Compare what was acknowledged with what the offline verifier reads from the files."""
    outcomes: dict[str, list[int]] = {}
    intents: set[tuple[str, int]] = set()

    def visit(index: int, leaf: bytes) -> None:
        record = record_pb2.Record.FromString(leaf)
        if record.kind == record_pb2.RECORD_KIND_OUTCOME:
            outcomes.setdefault(record.decision_id, []).append(index)
        elif record.kind == record_pb2.RECORD_KIND_INTENT:
            intents.add((record.decision_id, index))

    files = OsFileSystem(folder / "audit" / "log")
    Journal.open(files)[0].close()  # what the next start would do: cut an unfinished tail
    files.close()
    key = VerifierKey.parse((folder / "keys" / "audit.pem.vkey").read_text())
    files = OsFileSystem(folder / "audit" / "log", exclusive=False)
    report = verify_log(files, [key], witnessed=seen.notes, visit=visit)
    breaks = [found for found in report.breaks if "ends in the middle" not in found.what]
    assert not breaks, breaks[:3]
    assert not seen.forks, seen.forks[:3]
    assert all(len(leaves) == 1 for leaves in outcomes.values()), "two OUTCOMEs for one decision"
    missing = [d for d, leaf in seen.outcomes.items() if outcomes.get(d) != [leaf]]
    missing += [d for d, leaf in seen.intents if (d, leaf) not in intents]
    intended = {decision for decision, _ in intents}
    for decision, _ in seen.replies.values():
        if decision not in outcomes or decision not in intended:
            missing.append(decision)
    assert not missing, f"{len(missing)} acknowledged records are missing, such as {missing[:3]}"
