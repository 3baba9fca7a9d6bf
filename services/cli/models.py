"""`twinpath models`: what both paths can serve, as their servers describe it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import client, console, models_control, models_quantize, models_sign

if TYPE_CHECKING:
    from rich.table import Table

    from services.chassis.errors import ServiceError
    from twinpath.inference.v1 import inference_pb2, tensor_pb2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Models: look at both paths'; load, roll back, unload, sign and quantize the local ones.",
)

app.command()(models_control.load)
app.command()(models_control.unload)
app.command()(models_control.rollback)
app.command()(models_control.states)
app.command()(models_quantize.quantize)
app.command()(models_sign.sign)

Path = Annotated[str, typer.Option("--path", metavar="local|remote", help="Only this path.")]
Json = Annotated[bool, typer.Option("--json", help="Print the message as JSON.")]
_PATHS = ("local", "remote")


@app.command("list")
def list_(path: Path = "", as_json: Json = False) -> None:
    """List the models of both paths, each with its state.

    Exits with 1 when a path does not answer; what the other one said is shown all the same.
    """
    _show("twinpath models list", "", "", path, as_json=as_json, details=False)


@app.command()
def describe(
    model: Annotated[str, typer.Argument(help="The model; `twinpath models list` names them.")],
    version: Annotated[str, typer.Option(help="Only this version.")] = "",
    path: Path = "",
    as_json: Json = False,
) -> None:
    """Show what a model wants and gives, and which artifact answers.

    [bold]twinpath models describe diabetes_small[/]
    """
    _show("twinpath models describe", model, version, path, as_json=as_json, details=True)


def _show(span: str, model: str, version: str, path: str, *, as_json: bool, details: bool) -> None:
    if path and path not in _PATHS:
        raise typer.BadParameter("must be local or remote", param_hint="--path")
    paths = [path] if path else list(_PATHS)

    async def work(
        mesh: client.Connection,
    ) -> list[inference_pb2.DescribeResponse | ServiceError]:
        return await asyncio.gather(*(_describe(mesh, name, model, version) for name in paths))

    from services.chassis.errors import ServiceError  # noqa: PLC0415 - not for `--help`
    from twinpath.inference.v1 import inference_pb2  # noqa: PLC0415

    answers = client.run(span, work)
    found = inference_pb2.DescribeResponse()
    errors: list[ServiceError] = []
    for answer in answers:
        if isinstance(answer, ServiceError):
            errors.append(answer)
        else:
            found.models.extend(answer.models)
    if model and found.models:  # one path knows it: that the other doesn't is no news
        errors = [error for error in errors if error.reason != "MODEL_UNKNOWN"]
    elif model and all(error.reason == "MODEL_UNKNOWN" for error in errors):
        errors = errors[:1]
    if as_json:
        from google.protobuf.json_format import MessageToJson  # noqa: PLC0415

        console.out.print_json(MessageToJson(found, preserving_proto_field_name=True))
    elif details:
        for described in found.models:
            console.out.print(card(described))
    elif found.models:
        console.out.print(table(found.models))
    for error in errors:
        console.show_error(error)
    if errors:
        raise SystemExit(1)


async def _describe(
    mesh: client.Connection, path: str, model: str, version: str
) -> inference_pb2.DescribeResponse | ServiceError:
    import grpc  # noqa: PLC0415 - a second; not for `--help`

    from services.chassis.errors import from_rpc_error  # noqa: PLC0415
    from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc  # noqa: PLC0415

    request = inference_pb2.DescribeRequest(model=model, version=version)
    try:
        async with mesh.channel(path, role="operator") as channel:
            answer: inference_pb2.DescribeResponse = await inference_pb2_grpc.InferenceStub(
                channel
            ).Describe(request)
    except grpc.RpcError as error:
        return from_rpc_error(error)
    return answer


def table(models: Iterable[inference_pb2.ModelDescription]) -> Table:
    """Return the models as a table."""
    from rich.table import Table  # noqa: PLC0415 - not for `--help`

    shown = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("model", "version", "path", "state", "artifact"):
        shown.add_column(heading, no_wrap=heading != "state")
    for model in models:
        shown.add_row(
            model.name,
            model.version,
            _where(model),
            _state(model),
            model.artifact_digest.hex()[:12] or "[dim]not known[/]",
        )
    return shown


def card(model: inference_pb2.ModelDescription) -> Table:
    """Return one model with all that is known about it."""
    from rich.table import Table  # noqa: PLC0415 - not for `--help`

    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column()
    shown.add_row(f"[cyan]{model.name}[/]", f"version {model.version}")
    shown.add_row("path", _where(model))
    shown.add_row("state", _state(model))
    for tensor in model.inputs:
        shown.add_row("input", _tensor(tensor))
    for tensor in model.outputs:
        shown.add_row("output", _tensor(tensor))
    shown.add_row("rows", f"up to {model.max_batch_size} a call" if model.max_batch_size else "one")
    shown.add_row("streams", "yes" if model.streaming else "no")
    shown.add_row("artifact", f"sha256:{model.artifact_digest.hex()}" * bool(model.artifact_digest))
    shown.add_row("", "")
    return shown


def _where(model: inference_pb2.ModelDescription) -> str:
    if not model.provider:
        return "local"
    region = f" ({model.region})" if model.region else ""
    return f"remote: {model.provider}{region}"


def _state(model: inference_pb2.ModelDescription) -> str:
    from rich.markup import escape  # noqa: PLC0415 - not for `--help`

    from twinpath.inference.v1 import inference_pb2  # noqa: PLC0415

    name = inference_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower()
    colour = {"ready": "green", "loading": "yellow", "unavailable": "red"}.get(name, "dim")
    reason = f": {escape(model.state_reason)}" if model.state_reason else ""
    return f"[{colour}]{name}[/]{reason}"


def _tensor(spec: tensor_pb2.TensorSpec) -> str:
    from twinpath.inference.tensors import datatype_name  # noqa: PLC0415 - numpy; not for `--help`

    shape = " x ".join("any" if size < 0 else str(size) for size in spec.shape)
    return f"{spec.name}  [dim]{datatype_name(spec.datatype)}[/]  {shape or 'scalar'}"
