"""Point 1: one input, both paths, the same bytes."""

from __future__ import annotations

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
    for column in ("path", "model", "output", "input digest", "latency", "cost"):
        table.add_column(column, no_wrap=True)
    for reply in replies:
        ref = reply.answered_by
        table.add_row(
            render.path_name(ref.path),
            f"{ref.model} v{ref.version}",
            ", ".join(render.tensor(output) for output in reply.outputs),
            reply.input_digest.hex()[:12] + "…",
            duration(reply.latency_us),
            render.cost(reply.cost if reply.HasField("cost") else None),
        )
    return table
