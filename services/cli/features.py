"""`twinpath features`: what stands in the shared feature store, and how fresh it is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import client, console
from services.cli.values import parse_pairs

if TYPE_CHECKING:
    import grpc.aio

    from twinpath.common.v1.value_pb2 import Column, Value
    from twinpath.features.v1 import features_pb2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Look at features: their values, freshness and data classes.",
)

Service = Annotated[
    str, typer.Argument(help="The feature service; `twinpath features list` names them.")
]
Entity = Annotated[
    list[str] | None,
    typer.Option("--entity", "-e", metavar="KEY=VALUE", help="A join key; may stand again."),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--field", "-f", metavar="NAME=VALUE", help="A request field; may stand again."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the message as JSON.")]
Deadline = Annotated[float, typer.Option("--deadline", min=0.001, help="Seconds for the answer.")]


@app.command()
def get(
    service: Service,
    entity: Entity = None,
    field: Fields = None,
    deadline_s: Deadline = 10.0,
    as_json: Json = False,
) -> None:
    """Show the feature vector of one entity, with each feature's freshness.

    [bold]twinpath features get diabetes_progression_v1 -e patient_id=17 -f bmi_now=27.5[/]

    Exits with 1 when the row can't be read.
    """
    keys = parse_pairs(entity or [], "--entity")
    requests = parse_pairs(field or [], "--field")

    async def work(mesh: client.Connection) -> features_pb2.GetFeaturesResponse:
        async with mesh.channel("features", role="operator", deadline_s=deadline_s) as channel:
            return await read_vector(channel, service, keys, requests)

    answer = client.run("twinpath features get", work)
    if as_json:
        _print_json(answer)
    else:
        from services.cli import feature_table  # noqa: PLC0415 - not for `--help`

        console.out.print(feature_table.vector(answer, 0, datetime.now(tz=UTC)))
    from services.chassis.errors import from_status  # noqa: PLC0415 - not for `--help`

    error = from_status(answer.rows[0].status)
    if error is not None:
        console.show_error(error)
        raise SystemExit(1)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the feature services: what each needs, reads, and how secret it is."""

    async def work(mesh: client.Connection) -> features_pb2.DescribeResponse:
        async with mesh.channel("features", role="operator") as channel:
            return await describe(channel, "")

    answer = client.run("twinpath features list", work)
    if as_json:
        _print_json(answer)
        return
    from services.cli import feature_table  # noqa: PLC0415 - not for `--help`

    console.out.print(feature_table.services(answer))


@app.command()
def lineage(
    view: Annotated[str, typer.Argument(help="A feature view or on-demand feature view.")],
    repo: Annotated[
        Path, typer.Option(envvar="TWINPATH_FEATURES_REPO", help="Folder of the Feast repo.")
    ] = Path("feature_repo"),
    catalog: Annotated[
        Path, typer.Option(envvar="TWINPATH_CATALOG", help="Folder of the catalog.")
    ] = Path("deploy/catalog"),
) -> None:
    """Show a view's way from its sources to the models that it feeds.

    Reads the Feast registry and the catalog's files; needs no running mesh.
    """
    from services.cli import feature_lineage  # noqa: PLC0415 - imports Feast: seconds

    try:
        tree = feature_lineage.trace(view, repo, catalog)
    except feature_lineage.LineageError as error:
        console.show_problem("no lineage", str(error))
        raise SystemExit(1) from None
    console.out.print(tree)


async def read_vector(
    channel: grpc.aio.Channel,
    service: str,
    keys: dict[str, Value],
    requests: dict[str, Value],
) -> features_pb2.GetFeaturesResponse:
    """Read the feature vector of one entity row.

    Raises:
        grpc.aio.AioRpcError: what the feature service says.
    """
    from services.chassis import telemetry  # noqa: PLC0415 - not for `--help`
    from twinpath.common.v1 import context_pb2  # noqa: PLC0415
    from twinpath.features.v1 import features_pb2, features_pb2_grpc  # noqa: PLC0415

    request = features_pb2.GetFeaturesRequest(
        feature_service=service,
        rows=[context_pb2.ItemContext(id="cli", trace=telemetry.inject())],
        join_keys=[_column(name, value) for name, value in keys.items()],
        request_fields=[_column(name, value) for name, value in requests.items()],
    )
    answer: features_pb2.GetFeaturesResponse = await features_pb2_grpc.FeaturesStub(
        channel
    ).GetFeatures(request)
    return answer


async def describe(channel: grpc.aio.Channel, service: str) -> features_pb2.DescribeResponse:
    """Describe one feature service; all with an empty name.

    Raises:
        grpc.aio.AioRpcError: what the feature service says.
    """
    from twinpath.features.v1 import features_pb2, features_pb2_grpc  # noqa: PLC0415

    answer: features_pb2.DescribeResponse = await features_pb2_grpc.FeaturesStub(channel).Describe(
        features_pb2.DescribeRequest(feature_service=service)
    )
    return answer


def _column(name: str, value: Value) -> Column:
    from twinpath.common.v1.value_pb2 import Column, ListValue  # noqa: PLC0415

    return Column(name=name, mixed=ListValue(values=[value]))


def _print_json(message: object) -> None:
    from google.protobuf.json_format import MessageToJson  # noqa: PLC0415 - not for `--help`

    console.out.print_json(
        MessageToJson(message, preserving_proto_field_name=True)  # type: ignore[arg-type]
    )
