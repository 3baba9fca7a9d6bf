"""Kill -9 of the audit service under load: what was acknowledged must be there after it.

A real process, real files, SIGKILL at random moments. This shows process crashes only: the page
cache survives them. What a power failure does is shown on a simulated disk (audit_crashes.py).
Run at length: `python -m tests.chaos.audit_kills --kills 1000 --seed 1`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from services.audit.checkpoint import VerifierKey
from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.verify import verify_log
from tests import support
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from twinpath.common.v1 import context_pb2, value_pb2

ALREADY_EXISTS = 6


@dataclass
class Tally:
    """What was seen from outside.

    `outcomes` maps a decision to the leaf that was given as its OUTCOME; `intents` likewise.
    """

    kills: int = 0
    acknowledged: int = 0
    repeated: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    intents: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    forks: list[str] = field(default_factory=list)


def _environment(folder: Path, keys: support.MeshKeys, port: int) -> dict[str, str]:
    return {
        **os.environ,
        **keys.environment(),
        "PYTHONPATH": str(support.ROOT),
        "TWINPATH_AUDIT_LISTEN": f"127.0.0.1:{port}",
        "TWINPATH_AUDIT_DIRECTORY": str(folder / "audit"),
        "TWINPATH_AUDIT_KEY_STORE": str(folder / "keys" / "subjects.sqlite"),
        "TWINPATH_AUDIT_SIGNING_KEY": str(folder / "keys" / "audit.pem"),
        "TWINPATH_AUDIT_CHECKPOINT_INTERVAL_S": "0.05",
        "TWINPATH_AUDIT_SEGMENT_RECORDS": "500",
        "TWINPATH_AUDIT_MIN_FREE_BYTES": "0",
        "TWINPATH_LOG_LEVEL": "ERROR",
    }


def _entries(decision: str, chance: random.Random) -> list[audit_pb2.Entry]:
    subject = audit_pb2.Subject(
        entity={"patient_id": value_pb2.Value(int64_value=chance.randint(1, 50))}
    )
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


async def _caller(
    stub: audit_pb2_grpc.AuditStub, name: str, chance: random.Random, tally: Tally, open_: list[str]
) -> None:
    """Append decisions one after the other; those that got no answer are asked again later."""
    number = 0
    while True:
        decision = open_.pop() if open_ and chance.random() < 0.5 else f"{name}-{number}"
        number += 1
        entries = _entries(decision, chance)
        try:
            answer = await stub.Append(audit_pb2.AppendRequest(entries=entries), timeout=5)
        except grpc.aio.AioRpcError:
            open_.append(decision)
            return
        intent, outcome = answer.results
        if intent.status.code == 0:
            tally.intents[decision] = intent.leaf_index
            tally.acknowledged += 1
        if outcome.status.code not in (0, ALREADY_EXISTS):
            open_.append(decision)
            continue
        if outcome.status.code == 0:
            tally.acknowledged += 1
        else:
            tally.repeated += 1
            if outcome.existing.payload.reply != decision.encode():
                tally.forks.append(f"{decision}: the reply that came first is not its own")
        before = tally.outcomes.setdefault(decision, outcome.leaf_index)
        if before != outcome.leaf_index:
            tally.forks.append(f"{decision}: OUTCOME {before} and {outcome.leaf_index}")


async def _checkpoints(stub: audit_pb2_grpc.AuditStub, tally: Tally) -> None:
    """Keep some of the checkpoints that the service gave out, as a witness would."""
    while True:
        try:
            answer = await stub.Checkpoint(audit_pb2.CheckpointRequest(now=True), timeout=5)
        except grpc.aio.AioRpcError:
            return
        tally.notes.append(answer.note)
        await asyncio.sleep(0.1)


async def _one_life(
    environment: dict[str, str],
    token: str,
    life: int,
    chance: random.Random,
    tally: Tally,
    open_: list[str],
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.audit", env=environment, cwd=support.ROOT
    )
    address = environment["TWINPATH_AUDIT_LISTEN"]
    try:
        async with support.client(address, token) as channel:
            await asyncio.wait_for(_ready(channel, process), 60)
            stub = audit_pb2_grpc.AuditStub(channel)
            tasks = [
                asyncio.create_task(
                    _caller(stub, f"{life}-{n}", random.Random(chance.random()), tally, open_)
                )
                for n in range(16)
            ]
            tasks.append(asyncio.create_task(_checkpoints(stub, tally)))
            await asyncio.sleep(chance.uniform(0.02, 0.6))
            process.send_signal(signal.SIGKILL)
            tally.kills += 1
            await asyncio.gather(*tasks)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ready(channel: grpc.aio.Channel, process: asyncio.subprocess.Process) -> None:
    while True:
        if process.returncode is not None:
            raise AssertionError(f"the service exited with {process.returncode} at its start")
        stub = audit_pb2_grpc.AuditStub(channel)
        try:
            await stub.Checkpoint(audit_pb2.CheckpointRequest(), timeout=1)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DATA_LOSS:
                raise
            await asyncio.sleep(0.02)
        else:
            return


async def run(folder: Path, kills: int, seed: int, within_s: float = math.inf) -> Tally:
    """Kill the service so many times, or as often as time allows, then check every acknowledgement against the files.

    Raises:
        AssertionError: something acknowledged is missing or changed, a decision has two
            OUTCOMEs, or a checkpoint that was given out doesn't fit the log.
    """
    chance = random.Random(seed)
    keys = support.mesh_keys(folder / "mesh")
    token = keys.token("service:router", lifetime_s=86_400, roles=["auditor"])
    environment = _environment(folder, keys, support.free_port())
    tally, open_ = Tally(), list[str]()
    end = time.monotonic() + within_s
    for life in range(kills):
        if time.monotonic() > end:
            break
        await _one_life(environment, token, life, chance, tally, open_)
    check(folder, tally)
    return tally


def check(folder: Path, tally: Tally) -> None:
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
    report = verify_log(files, [key], witnessed=tally.notes, visit=visit)
    torn = "ends in the middle"
    breaks = [found for found in report.breaks if torn not in found.what]
    assert not breaks, breaks[:3]
    assert not tally.forks, tally.forks[:3]
    assert all(len(leaves) == 1 for leaves in outcomes.values()), "two OUTCOMEs for one decision"
    missing = [d for d, leaf in tally.outcomes.items() if outcomes.get(d) != [leaf]]
    missing += [d for d, leaf in tally.intents.items() if (d, leaf) not in intents]
    assert not missing, f"{len(missing)} acknowledged records are missing, such as {missing[:3]}"


def main() -> None:
    """Run from the command line and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = asyncio.run(run(Path(folder), given.kills, given.seed, given.minutes * 60))
    print(  # noqa: T201
        f"kills {tally.kills}, acknowledged {tally.acknowledged}, missing 0, forks 0, "
        f"repeated and answered from the log {tally.repeated}, checkpoints kept {len(tally.notes)}"
    )


if __name__ == "__main__":
    main()
