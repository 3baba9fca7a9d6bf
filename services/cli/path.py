"""`twinpath path drain|restore`: a person's word about a path, recorded in the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import client, console
from services.cli.decide import PathChoice

if TYPE_CHECKING:
    from twinpath.router.v1 import router_pb2

app = typer.Typer(no_args_is_help=True, help="Drain a path, or give it its traffic back.")

Which = Annotated[PathChoice, typer.Argument(help="The path.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stands in the audit record.")]


@app.command()
def drain(path: Which, reason: Reason) -> None:
    """Send no new attempts to a path. Policy still holds: this never admits anybody."""
    _override(path, reason, drained=True)


@app.command()
def restore(path: Which, reason: Reason) -> None:
    """Give a drained path its traffic back."""
    _override(path, reason, drained=False)


def _override(path: PathChoice, reason: str, *, drained: bool) -> None:
    async def work(mesh: client.Connection) -> router_pb2.OverridePathResponse:
        from twinpath.common.v1 import context_pb2  # noqa: PLC0415 - not for `--help`
        from twinpath.router.v1 import router_pb2, router_pb2_grpc  # noqa: PLC0415 - as above

        async with mesh.channel("router", role="operator") as channel:
            answer: router_pb2.OverridePathResponse = await router_pb2_grpc.RouterStub(
                channel
            ).OverridePath(
                router_pb2.OverridePathRequest(
                    path=getattr(context_pb2, f"PATH_{path.name}"), drained=drained, reason=reason
                )
            )
            return answer

    reply = client.run("twinpath path", work)
    from twinpath.common.v1 import context_pb2  # noqa: PLC0415 - not for `--help`

    names = [context_pb2.Path.Name(p).removeprefix("PATH_").lower() for p in reply.drained]
    state = ", ".join(names) if names else "none"
    console.out.print(f"drained paths: [bold]{state}[/]   (recorded at leaf {reply.leaf_index})")
