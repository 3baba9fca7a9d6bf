"""Point 1: one input, both paths, the same bytes."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from services.cli import render
from services.cli.demo.evidence import Evidence
from services.cli.demo.stage import DIABETES, Stage
from services.cli.tracing.tree import duration
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2


async def same_input(stage: Stage, evidence: Evidence) -> None:
    """Ask the same question of each path, and compare what both got."""
    for path in (context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE):
        await stage.infer(DIABETES, only_path=path)  # the first calls open connections
    local = await stage.infer(DIABETES, only_path=context_pb2.PATH_LOCAL)
    remote = await stage.infer(DIABETES, only_path=context_pb2.PATH_REMOTE)
    arrived = await stage.last_request()
    evidence.show(_table(local, remote))
    evidence.check(
        local.answered_by.path == context_pb2.PATH_LOCAL
        and remote.answered_by.path == context_pb2.PATH_REMOTE,
        f"two paths answered: {local.answered_by.model} here, "
        f"{remote.answered_by.model} at {remote.answered_by.provider}",
    )
    evidence.check(
        len(local.input_digest) == 32 and local.input_digest == remote.input_digest,
        f"both got the same model input: SHA-256 {local.input_digest.hex()[:16]}…",
    )
    sent = remote.attempts[-1].wire_digest.hex() if remote.attempts else ""
    evidence.check(
        bool(sent) and sent == arrived.get("body_sha256"),
        f"the body that the stand-in vendor logged is the one in our record: SHA-256 {sent[:16]}…",
    )
    evidence.check(
        all(reply.outputs and reply.decision_id for reply in (local, remote)),
        "each answer has its output, its decision id and its place in the audit log",
    )


def _table(*replies: router_pb2.InferResponse) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for reply in replies:
        table.add_column(f"{render.path_name(reply.answered_by.path)} path", no_wrap=True)
    rows: dict[str, Callable[[router_pb2.InferResponse], str]] = {
        "model": lambda r: f"{r.answered_by.model} v{r.answered_by.version}",
        "output": lambda r: ", ".join(render.tensor(output) for output in r.outputs),
        "input digest": lambda r: r.input_digest.hex()[:24] + "…",
        "latency": lambda r: duration(r.latency_us),
        "cost": lambda r: render.cost(r.cost if r.HasField("cost") else None),
        "decision": lambda r: r.decision_id[:24] + "…",
    }
    for name, fact in rows.items():
        table.add_row(f"[dim]{name}[/]", *(fact(reply) for reply in replies))
    return table
