"""`twinpath models load|unload|rollback|states`: the life of the local path's models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import client, console

if TYPE_CHECKING:
    from rich.table import Table

    from twinpath.inference.v1 import model_control_pb2

Model = Annotated[str, typer.Argument(help="The model: its folder in the model repository.")]
Version = Annotated[str, typer.Argument(help="The version: a number, the name of its folder.")]
_DEADLINE_S = 180.0  # Triton may take its time to load


def load(
    model: Model,
    version: Version,
    aside: Annotated[
        bool, typer.Option("--aside", help="Leave the serving version as it is.")
    ] = False,
) -> None:
    """Load a version beside the others, warm it up, and let it serve.

    Exits with 1 when it is refused; what was loaded before serves on.
    """
    from twinpath.inference.v1 import model_control_pb2  # noqa: PLC0415 - not for `--help`

    request = model_control_pb2.LoadModelRequest(model=model, version=version, aside=aside)
    answer = _ask("twinpath models load", lambda stub: stub.LoadModel(request))
    warm = f"warmed up in {answer.warm_up_us / 1000:.1f} ms" if answer.warm_up_us else "was warm"
    what = "serves" if answer.state.serving else "is ready"
    console.out.print(f"[green]{model} {version} {what}[/], {warm}")
    if answer.state.serving:
        _tell_pins(answer.pins)


def unload(model: Model, version: Version) -> None:
    """Drain a version and unload it. The serving one needs `rollback` first.

    One that a task of the catalog names exactly is refused: change the task first.
    """
    from twinpath.inference.v1 import model_control_pb2  # noqa: PLC0415 - not for `--help`

    request = model_control_pb2.UnloadModelRequest(model=model, version=version)
    answer = _ask("twinpath models unload", lambda stub: stub.UnloadModel(request))
    console.out.print(f"{model} {version} is unloaded")
    if answer.cut_off:
        console.show_problem("cut off", f"{answer.cut_off} requests had not ended in time")
        raise SystemExit(1)


def rollback(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="This version, not the one before.")] = "",
) -> None:
    """Give the traffic back to the version that served before, or to another loaded one.

    It moves every task whose candidate has `version: live`, with the router's next look, and
    loses no request. A task that names an exact version stays with it, and is listed.
    """
    from twinpath.inference.v1 import model_control_pb2  # noqa: PLC0415 - not for `--help`

    request = model_control_pb2.SetServingRequest(model=model, version=to)
    answer = _ask("twinpath models rollback", lambda stub: stub.SetServing(request))
    before = f", no longer {answer.before}" if answer.before else ""
    console.out.print(f"[green]{model} {answer.state.version} serves[/]{before}")
    _tell_pins(answer.pins)


def _tell_pins(pins: Iterable[model_control_pb2.Pin]) -> None:
    """Say whose traffic did not move."""
    for pin in pins:
        console.out.print(
            f"[yellow]task {pin.task} stays with version {pin.version}[/], which its candidate "
            "names; with `version: live` it would move"
        )


def states(
    model: Annotated[str, typer.Argument(help="Only this model.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the message as JSON.")] = False,
) -> None:
    """Show each local version's stage: on disk, warming, ready, draining, refused."""
    from twinpath.inference.v1 import model_control_pb2  # noqa: PLC0415 - not for `--help`

    request = model_control_pb2.ModelStatesRequest(model=model)
    answer = _ask("twinpath models states", lambda stub: stub.ModelStates(request))
    if as_json:
        from google.protobuf.json_format import MessageToJson  # noqa: PLC0415

        console.out.print_json(MessageToJson(answer, preserving_proto_field_name=True))
        return
    console.out.print(table(answer))
    if not answer.explicit:
        console.out.print("[dim]This local path loads nothing by call (not explicit).[/]")


def _ask(span: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
    async def work(mesh: client.Connection) -> Any:
        from twinpath.inference.v1 import model_control_pb2_grpc  # noqa: PLC0415

        async with mesh.channel("local", role="operator", deadline_s=_DEADLINE_S) as channel:
            return await call(model_control_pb2_grpc.ModelControlStub(channel))

    return client.run(span, work)


def table(answer: model_control_pb2.ModelStatesResponse) -> Table:
    """Return the states as a table."""
    from rich.markup import escape  # noqa: PLC0415 - not for `--help`
    from rich.table import Table  # noqa: PLC0415

    from twinpath.inference.v1 import model_control_pb2  # noqa: PLC0415

    shown = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("model", "version", "stage", "serves", "in flight", "reason"):
        shown.add_column(heading, no_wrap=heading != "reason")
    colours = {"ready": "green", "refused": "red", "warming": "yellow", "draining": "yellow"}
    for state in answer.states:
        stage = model_control_pb2.Stage.Name(state.stage).removeprefix("STAGE_").lower()
        colour = colours.get(stage, "dim")
        shown.add_row(
            state.model,
            state.version,
            f"[{colour}]{stage}[/]",
            "yes" if state.serving else "",
            str(state.in_flight or ""),
            escape(state.reason),
        )
    return shown
