"""`twinpath features`: what stands in the shared feature store, and how fresh it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
Repo = Annotated[
    Path, typer.Option(envvar="TWINPATH_FEATURES_REPO", help="Folder of the Feast repo.")
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
    repo: Repo = Path("feature_repo"),
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


@app.command()
def new(
    view: Annotated[str, typer.Argument(help="The new view's name, in lower_snake_case.")],
    entity: Annotated[str, typer.Option("--entity", help="A variable of entities.py.")],
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", metavar="NAME:TYPE", help="A feature; may stand again."),
    ] = None,
    service: Annotated[
        str, typer.Option("--service", help="A feature service that gets the view, too.")
    ] = "",
    data_class: Annotated[
        str, typer.Option(help="public, internal, confidential or restricted.")
    ] = "restricted",
    owner: Annotated[str, typer.Option(help="Who answers for it.")] = "nobody yet",
    repo: Repo = Path("feature_repo"),
    tests: Annotated[Path, typer.Option(help="Folder of its test.")] = Path(
        "tests/unit/feature_repo"
    ),
) -> None:
    """Scaffold a feature view: its definition, its validation rules and its test.

    [bold]twinpath features new blood_gas --entity diabetes_patient --feature ph:Float64[/]
    """
    from services.cli import features_new  # noqa: PLC0415 - not for `--help`

    fields: dict[str, str] = {}
    for given in feature or ["value:Float64"]:
        name, _, kind = given.partition(":")
        fields[name] = kind or "Float64"
    try:
        files = features_new.scaffold(
            *(repo, tests, view),
            entity=entity,
            fields=fields,
            service=service,
            data_class=data_class,
            owner=owner,
        )
        features_new.definitions(repo)
    except features_new.AuthorError as error:
        console.show_problem("no view", str(error))
        raise SystemExit(1) from None
    for file in files:
        console.out.print(f"  {file}")
    console.out.print(
        f"Write {repo / 'data' / view}.parquet (or name another source), then "
        "[bold]twinpath features apply[/]."
    )


@app.command()
def check(repo: Repo = Path("feature_repo")) -> None:
    """Check the Feast repo's definitions and validation rules; mistakes name file and line."""
    _definitions(repo, apply=False)


@app.command()
def apply(repo: Repo = Path("feature_repo")) -> None:
    """Check the Feast repo, then `feast apply` it; live within seconds."""
    _definitions(repo, apply=True)


def _definitions(repo: Path, *, apply: bool) -> None:
    from services.cli import features_new  # noqa: PLC0415 - not for `--help`

    try:
        views = features_new.definitions(repo, apply=apply)
    except features_new.AuthorError as error:
        console.show_problem("mistakes in the definitions", str(error))
        raise SystemExit(1) from None
    for view, fields in views.items():
        console.out.print(f"  [bold]{view}[/] ({len(fields)} features)")
    console.out.print("applied" if apply else "no mistakes")


@app.command()
def skew(
    service: Service,
    entity: Entity = None,
    entities: Annotated[
        Path | None,
        typer.Option("--entities", help="CSV or Parquet file with the join keys of many."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            envvar="TWINPATH_FEATURES_SAMPLES",
            help="Folder of samples: compare what was served, instead of asking now.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TWINPATH_FEATURES_SAMPLE_KEY_FILE", help="File with the samples' key."
        ),
    ] = None,
    repo: Repo = Path("feature_repo"),
    deadline_s: Deadline = 30.0,
) -> None:
    """Compare served values with offline ones, for the same entities and times.

    [bold]twinpath features skew diabetes_progression_v1 -e patient_id=17[/]

    Asks the running service, or with --samples reads what it kept. Exits with 1 when they are not
    the same. On-demand views are compared by their inputs.
    """
    if samples is not None and key_file is None:
        console.show_problem("no comparison", "--samples needs --key-file: samples hold no keys")
        raise SystemExit(1)
    from services.cli import features_skew  # noqa: PLC0415 - imports Feast: seconds

    rows = [{key: _scalar(value) for key, value in parse_pairs(entity or [], "--entity").items()}]

    async def work(mesh: client.Connection) -> features_pb2.GetFeaturesResponse:
        async with mesh.channel("features", role="operator", deadline_s=deadline_s) as channel:
            described = (await describe(channel, service)).feature_services[0]
            if entities is not None:
                keys = [key.name for key in described.join_keys]
                rows[:] = features_skew.read_entities(entities, keys)
            fields = [field.name for field in described.request_fields]
            return await read_rows(channel, service, features_skew.key_columns(rows), fields)

    try:
        whose: Sequence[Mapping[str, object]] = rows
        if samples is not None and key_file is not None:
            if entities is not None:
                rows[:] = features_skew.read_entities(
                    entities, features_skew.join_keys(repo, service)
                )
            secret = key_file.read_bytes().strip()
            whose, served = features_skew.served_samples(samples, service, rows, secret)
        else:
            served = features_skew.served_now(client.run("twinpath features skew", work))
        found = features_skew.compare(repo, service, whose, served)
    except (OSError, ValueError, features_skew.SkewError) as error:
        console.show_problem("no comparison", str(error))
        raise SystemExit(1) from None
    console.out.print(features_skew.table(found))
    if any(one.skewed for one in found):
        raise SystemExit(1)


async def read_rows(
    channel: grpc.aio.Channel, service: str, keys: list[Column], fields: list[str]
) -> features_pb2.GetFeaturesResponse:
    """Read many rows, with null for each request field.

    Raises:
        grpc.aio.AioRpcError: what the feature service says.
    """
    from twinpath.common.v1 import context_pb2, value_pb2  # noqa: PLC0415 - not for `--help`
    from twinpath.features.v1 import features_pb2, features_pb2_grpc  # noqa: PLC0415

    array = keys[0].WhichOneof("values")
    count = len(getattr(keys[0], array).values) if array else 0
    request = features_pb2.GetFeaturesRequest(
        feature_service=service,
        rows=[context_pb2.ItemContext(id=str(number)) for number in range(count)],
        join_keys=keys,
        request_fields=[value_pb2.Column(name=name) for name in fields],
    )
    answer: features_pb2.GetFeaturesResponse = await features_pb2_grpc.FeaturesStub(
        channel
    ).GetFeatures(request)
    return answer


def _scalar(value: Value) -> object:
    kind = value.WhichOneof("kind")
    return getattr(value, kind) if kind else None


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
