"""Point 3: the vendor goes away, and the task that may use either path is answered here."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from services.cli import render
from services.cli.demo.evidence import Evidence
from services.cli.demo.stage import DIABETES, Stage
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2


async def vendor_down(stage: Stage, evidence: Evidence) -> None:
    """Prefer the vendor, take it away, and ask."""
    preferred = await stage.prefer(DIABETES, context_pb2.PATH_REMOTE)
    usual = await stage.infer(DIABETES)
    await stage.faults({"fault": "outage"})
    try:
        at_once = await stage.infer(DIABETES)
        noticed = await stage.until_left_out(DIABETES, context_pb2.PATH_REMOTE)
        later = await stage.infer(DIABETES)
        alone = await stage.refusal(DIABETES, only_path=context_pb2.PATH_REMOTE)
    finally:
        await stage.faults()
    back = await stage.until_answered(DIABETES, context_pb2.PATH_REMOTE)
    moments = (("before", usual), ("at once", at_once), ("later", later))
    evidence.show(Group(*(_line(moment, reply) for moment, reply in moments)))
    evidence.check(
        preferred and usual.answered_by.path == context_pb2.PATH_REMOTE,
        "the task's file was changed to prefer the vendor, no restart: the vendor answered",
    )
    evidence.check(
        at_once.answered_by.path == context_pb2.PATH_LOCAL,
        "the stand-in vendor refuses connections: the next question is answered locally"
        + (", as a fallback" if at_once.fallback else ""),
    )
    evidence.check(
        noticed and later.answered_by.path == context_pb2.PATH_LOCAL,
        "then the plan leaves the vendor out, and the local path answers first",
    )
    evidence.check(
        alone is not None,
        "for the remote path alone there is no answer: "
        + (f"{alone.code.name} {alone.reason}" if alone is not None else "but there was one"),
    )
    evidence.check(back is not None, "the outage ends, and the vendor answers again")


def _line(moment: str, reply: router_pb2.InferResponse) -> Text:
    ref = reply.answered_by
    line = Text(f"{moment:7}  ", style="dim")
    line.append(f"{render.path_name(ref.path):6}  {ref.model} v{ref.version}  ", style="bold")
    line.append(", ".join(render.tensor(output) for output in reply.outputs))
    failed = [attempt.reason for attempt in reply.attempts if attempt.code]
    if failed:
        line.append(f"  after {', '.join(failed)}", style="yellow")
    return line
