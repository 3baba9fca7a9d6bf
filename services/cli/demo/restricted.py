"""Point 2: restricted data does not leave, not even when nothing else could answer."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from services.chassis.errors import ServiceError
from services.cli import render
from services.cli.demo.evidence import Evidence
from services.cli.demo.stage import TUMOUR, Stage
from twinpath.common.v1 import context_pb2, decision_pb2

_RULE = "restricted_never_leaves"


async def restricted(stage: Stage, evidence: Evidence) -> None:
    """Kill the local path's Triton, ask in every way there is, and count at the vendor."""
    before = await stage.counters()
    stage.mesh.kill("triton")
    try:
        refusals = [await stage.refusal(TUMOUR)]  # nobody has noticed yet
        noticed = await stage.until_left_out(TUMOUR, context_pb2.PATH_LOCAL)
        plan = await stage.plan(TUMOUR)
        refusals += [
            await stage.refusal(TUMOUR),
            await stage.refusal(TUMOUR, only_path=context_pb2.PATH_REMOTE),
            await stage.refusal(TUMOUR, data_class=context_pb2.DATA_CLASS_PUBLIC),
        ]
        after = await stage.counters()
    finally:
        await stage.mesh.start_one("triton")
    if refusals[1] is not None:
        evidence.show(_refusal(refusals[1]))
    evidence.check(
        all(refusal is not None for refusal in refusals),
        "with Triton dead the restricted record is refused: at once, later, "
        "for the remote path alone, and when the caller calls it public",
    )
    evidence.check(noticed, "the router has noticed, and its plan leaves the local path out")
    evidence.check(_excluded_by_policy(plan), f"the plan excludes the vendor by policy: {_RULE}")
    evidence.check(
        _sent(before) == _sent(after),
        "the stand-in vendor's own counters: "
        f"{after['inferences'] - before['inferences']} inferences and "
        f"{after['body_bytes'] - before['body_bytes']} bytes came in meanwhile",
    )
    reply = await stage.until_answered(TUMOUR, context_pb2.PATH_LOCAL)
    outputs = reply.outputs if reply is not None else ()
    evidence.check(
        reply is not None,
        "Triton is back, and the same record is answered locally: "
        + ", ".join(render.tensor(output) for output in outputs),
    )


def _sent(counters: dict[str, Any]) -> tuple[object, ...]:
    return counters["inferences"], counters["body_bytes"], counters["by_model"]


def _excluded_by_policy(plan: decision_pb2.Plan) -> bool:
    remote = [e for e in plan.entries if e.candidate.path == context_pb2.PATH_REMOTE]
    return bool(remote) and all(
        entry.rank == 0 and any(refusal.rule == _RULE for refusal in entry.refusals)
        for entry in remote
    )


def _refusal(error: ServiceError) -> Text:
    return Text.assemble((f"{error.code.name} {error.reason}", "bold red"), f"  {error.message}")
