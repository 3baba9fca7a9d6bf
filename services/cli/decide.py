"""`twinpath infer`, `explain` and `tasks`: what callers of the router do."""

from __future__ import annotations

import codecs
from collections import defaultdict
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import client, console
from services.cli.values import parse_pairs

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from twinpath.router.v1 import router_pb2, router_pb2_grpc


class PathChoice(StrEnum):
    """The paths that can be asked for."""

    LOCAL = "local"
    REMOTE = "remote"


class PriorityChoice(StrEnum):
    """The priorities."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


class DataClassChoice(StrEnum):
    """The data classes."""

    PUBLIC = "public"
    INTERNAL = "internal"
    CONFIDENTIAL = "confidential"
    RESTRICTED = "restricted"


Task = Annotated[str, typer.Argument(help="The task's name; `twinpath tasks` lists them.")]
Entity = Annotated[
    list[str] | None,
    typer.Option("--entity", "-e", metavar="KEY=VALUE", help="A join key; may stand again."),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--field", "-f", metavar="NAME=VALUE", help="A request field; may stand again."),
]
OnlyPath = Annotated[PathChoice | None, typer.Option("--path", help="Only this path.")]
Purpose = Annotated[str, typer.Option(help="What the answer is for.")]
DataClass = Annotated[
    DataClassChoice | None, typer.Option(help="The request's own data class; only makes stricter.")
]
Residency = Annotated[str, typer.Option(help='Where the data may be processed, such as "eu".')]
Json = Annotated[bool, typer.Option("--json", help="Print the message as JSON.")]
Deadline = Annotated[float, typer.Option("--deadline", min=0.001, help="Seconds for the answer.")]


def infer(
    task: Task,
    entity: Entity = None,
    field: Fields = None,
    path: OnlyPath = None,
    key: Annotated[str, typer.Option(help="Idempotency key: asking again repeats.")] = "",
    purpose: Purpose = "",
    data_class: DataClass = None,
    priority: Annotated[PriorityChoice | None, typer.Option(help="How urgent it is.")] = None,
    residency: Residency = "",
    deadline_s: Deadline = 10.0,
    plan: Annotated[bool, typer.Option("--plan", help="Show the plan, too.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Show chunks as they come.")] = False,
    as_json: Json = False,
) -> None:
    """Make one decision.

    [bold]twinpath infer diabetes_progression --entity patient_id=17 --field bmi_now=27.5[/]
    """
    request = _request(task, entity, field, path, purpose, data_class, residency)
    request.idempotency_key = key
    request.include_plan = plan
    if priority is not None:
        from twinpath.common.v1 import context_pb2  # noqa: PLC0415 - not for `--help`

        request.priority = getattr(context_pb2, f"PRIORITY_{priority.name}")

    async def work(mesh: client.Connection) -> router_pb2.InferResponse:
        from twinpath.router.v1 import router_pb2_grpc  # noqa: PLC0415 - not for `--help`

        async with mesh.channel("router", role="caller", deadline_s=deadline_s) as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            if stream:
                return await _show_stream(stub, request, beside=as_json)
            answer: router_pb2.InferResponse = await stub.Infer(request)
            return answer

    reply = client.run("twinpath infer", work)
    if as_json:
        _print_json(reply)
        return
    from services.cli import render  # noqa: PLC0415 - not for `--help`

    console.out.print(render.decision(reply))
    if plan:
        console.out.print(render.plan(reply.plan))


async def _show_stream(
    stub: router_pb2_grpc.RouterStub, request: router_pb2.InferRequest, *, beside: bool
) -> router_pb2.InferResponse:
    """Print text as it comes, `beside` what goes to standard output; return the final message."""
    from services.chassis.errors import UnavailableError  # noqa: PLC0415 - not for `--help`
    from twinpath.inference import tensors  # noqa: PLC0415 - the same
    from twinpath.router.v1 import router_pb2  # noqa: PLC0415 - the same

    out = console.err if beside else console.out
    final: router_pb2.InferResponse | None = None
    begin = partial(codecs.getincrementaldecoder("utf-8"), "replace")
    decoders: defaultdict[str, codecs.IncrementalDecoder] = defaultdict(begin)
    async for message in stub.InferStream(router_pb2.InferStreamRequest(request=request)):
        if message.HasField("final"):
            final = message.final
            continue
        for tensor in message.chunk.outputs:
            if tensor.datatype == tensors.BYTES:
                # A character may be split over two chunks.
                text = decoders[tensor.name].decode(b"".join(tensors.decode_bytes(tensor.raw)))
                out.print(text, end="", highlight=False, markup=False, soft_wrap=True)
                out.file.flush()
    out.print()
    if final is None:
        raise UnavailableError("STREAM_CUT", "the stream ended without its final message")
    return final


def explain(
    task: Task,
    entity: Entity = None,
    field: Fields = None,
    path: OnlyPath = None,
    purpose: Purpose = "",
    data_class: DataClass = None,
    residency: Residency = "",
    as_json: Json = False,
) -> None:
    """Show the plan that `infer` would follow now, and run nothing."""
    request = _request(task, entity, field, path, purpose, data_class, residency)

    async def work(mesh: client.Connection) -> router_pb2.ExplainResponse:
        from twinpath.router.v1 import router_pb2, router_pb2_grpc  # noqa: PLC0415 - as above

        async with mesh.channel("router", role="caller") as channel:
            answer: router_pb2.ExplainResponse = await router_pb2_grpc.RouterStub(channel).Explain(
                router_pb2.ExplainRequest(request=request)
            )
            return answer

    reply = client.run("twinpath explain", work)
    if as_json:
        _print_json(reply)
        return
    from services.cli import render  # noqa: PLC0415 - not for `--help`

    console.out.print(render.plan(reply.plan))
    console.out.print(render.input_facts(reply))


def tasks(
    task: Annotated[str, typer.Argument(help="A task's name; none: all.")] = "",
    as_json: Json = False,
) -> None:
    """List the tasks: what they need, what they give, who could answer."""

    async def work(mesh: client.Connection) -> router_pb2.DescribeResponse:
        from twinpath.router.v1 import router_pb2, router_pb2_grpc  # noqa: PLC0415 - as above

        async with mesh.channel("router", role="caller") as channel:
            answer: router_pb2.DescribeResponse = await router_pb2_grpc.RouterStub(
                channel
            ).Describe(router_pb2.DescribeRequest(task=task))
            return answer

    reply = client.run("twinpath tasks", work)
    if as_json:
        _print_json(reply)
        return
    from services.cli import render  # noqa: PLC0415 - not for `--help`

    console.out.print(render.tasks(reply))


def _request(
    task: str,
    entity: list[str] | None,
    fields: list[str] | None,
    path: PathChoice | None,
    purpose: str,
    data_class: DataClassChoice | None,
    residency: str,
) -> router_pb2.InferRequest:
    from twinpath.common.v1 import context_pb2  # noqa: PLC0415 - not for `--help`
    from twinpath.router.v1 import router_pb2  # noqa: PLC0415 - the same

    request = router_pb2.InferRequest(
        task=task,
        entity=parse_pairs(entity or (), "--entity"),
        fields=parse_pairs(fields or (), "--field"),
        purpose=purpose,
        residency=residency,
    )
    if path is not None:
        request.only_path = getattr(context_pb2, f"PATH_{path.name}")
    if data_class is not None:
        request.data_class = getattr(context_pb2, f"DATA_CLASS_{data_class.name}")
    return request


def _print_json(message: Message) -> None:
    from google.protobuf.json_format import MessageToJson  # noqa: PLC0415 - not for `--help`

    print(MessageToJson(message, preserving_proto_field_name=True))
