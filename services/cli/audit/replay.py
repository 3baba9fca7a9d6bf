"""Would the model say it again? One decision, on its path or on the other."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.cli import client, console, render
from services.cli.audit import options as opt
from services.cli.audit.show import attempt_line
from twinpath.router.v1 import router_pb2

_NOT_AGREED = 1


class Where(StrEnum):
    """Where a decision is replayed."""

    RECORDED = "recorded"
    OTHER = "other"
    LOCAL = "local"
    REMOTE = "remote"


Absolute = Annotated[
    float | None,
    typer.Option("--absolute", min=0, help="Allowed difference, in place of the task's own."),
]
Relative = Annotated[
    float | None, typer.Option("--relative", min=0, help="The same, as a share of the value.")
]


def replay(
    decision: Annotated[str, typer.Argument(help="The decision's id.")],
    path: Annotated[Where, typer.Option("--path", help="Where to run it.")] = Where.RECORDED,
    absolute: Absolute = None,
    relative: Relative = None,
    as_json: opt.Json = False,
) -> None:
    """Would the model, or the other path, say the same again?

    Runs it on the recorded input, and compares within the task's tolerance.
    Policy as it is now holds, and the replay is itself recorded. Exits with 1 if the outputs
    don't agree within the task's tolerance.
    """
    request = request_of(decision, path, absolute, relative)

    async def work(mesh: client.Connection) -> router_pb2.ReplayResponse:
        from twinpath.router.v1 import router_pb2_grpc  # noqa: PLC0415 - heavy

        async with mesh.channel("router", role="auditor") as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            answer: router_pb2.ReplayResponse = await stub.Replay(request)
            return answer

    answer = client.run("twinpath audit replay", work)
    if as_json:
        print(json.dumps(MessageToDict(answer, preserving_proto_field_name=True)))
    else:
        _show(answer)
    if not answer.agrees:
        raise typer.Exit(_NOT_AGREED)


def request_of(
    decision: str, path: Where, absolute: float | None, relative: float | None
) -> router_pb2.ReplayRequest:
    """Return the request to replay a decision; a tolerance counts as soon as one part is given."""
    request = router_pb2.ReplayRequest(decision_id=decision, path=f"REPLAY_PATH_{path.name}")
    if absolute is not None or relative is not None:
        request.tolerance.absolute = absolute or 0.0
        request.tolerance.relative = relative or 0.0
    return request


def _show(answer: router_pb2.ReplayResponse) -> None:
    out = console.out
    word = "[bold green]agrees[/]" if answer.agrees else "[bold red]does not agree[/]"
    out.print(f"{word}  replay of {answer.replay_of}")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("recorded by", render.candidate(answer.recorded_by))
    table.add_row("replayed by", render.candidate(answer.replayed_by))
    for output in answer.outputs:
        table.add_row(f"output {output.name}", _output(output))
    same = "the same, byte for byte, by the log's HMACs" if answer.same_input else "NOT shown equal"
    table.add_row("input", Text(same, style="" if answer.same_input else "red"))
    for change in answer.changes:
        table.add_row("changed since", Text(change, style="yellow"))
    for number, attempt in enumerate(answer.attempts, 1):
        table.add_row(f"attempt {number}", attempt_line(attempt))
    table.add_row("recorded as", f"{answer.decision_id}  (leaf {answer.leaf_index})")
    if answer.trace_id:
        table.add_row("trace", answer.trace_id)
    out.print(table)


def _output(output: router_pb2.OutputAgreement) -> RenderableType:
    style = "green" if output.agrees else "red"
    if output.problem:
        return Text(output.problem, style=style)
    if not output.HasField("tolerance"):
        told = "equal" if output.agrees else f"{output.differing} of {output.elements} differ"
        return Text(told, style=style)
    allowed = output.tolerance
    first = Text(f"differs by {output.max_absolute:.6g} at most", style=style)
    if output.max_relative:
        first.append(f" ({output.max_relative:.2%} of what was recorded)")
    limits = f"allowed: {allowed.absolute:g}"
    if allowed.relative:
        limits += f" + {allowed.relative:.2%} of it"
    lines = [first, Text(limits, style="dim")]
    if output.differing:
        lines.append(Text(f"{output.differing} of {output.elements} elements are beyond"))
    return Group(*lines)
