"""The command line's side of the mesh: where it is, as whom to call it, in which trace.

    async def work(mesh: Connection) -> ...:
        async with mesh.channel("audit", role="auditor") as channel:
            stub = audit_pb2_grpc.AuditStub(channel)
            ...
    result = run("twinpath audit get", work)

`run` opens the root span of the call's trace, shows errors of the mesh as a panel, and exits with
1 after one. The mesh is found by TWINPATH_<SERVICE>_ADDRESS and TWINPATH_TOKEN_FILE, or else by
what the launcher wrote to `run/mesh.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from services.cli import console
from services.cli.description import MeshDescription, MeshNotRunningError, home, read

if TYPE_CHECKING:
    import grpc.aio

T = TypeVar("T")
DEADLINE_S = 30.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a mesh. `description` is None when environment variables alone say it."""

    description: MeshDescription | None

    def address(self, service: str) -> str:
        """host:port of a service.

        Raises:
            MeshNotRunningError: Nothing says where it is.
        """
        variable = f"TWINPATH_{service.upper()}_ADDRESS"
        named = os.environ.get(variable)
        if named:
            return named
        if self.description is None or service not in self.description.addresses:
            raise MeshNotRunningError(f"nothing says where {service} is (set {variable})")
        return self.description.addresses[service]

    def token_file(self, role: str) -> Path | None:
        """The file with the token of a role: TWINPATH_TOKEN_FILE for all of them if it is set."""
        named = os.environ.get("TWINPATH_TOKEN_FILE")
        if named:
            return Path(named)
        if self.description is None:
            return None
        token = self.description.tokens.get(role)
        return Path(token) if token else None

    def channel(
        self, service: str, *, role: str, deadline_s: float = DEADLINE_S
    ) -> grpc.aio.Channel:
        """Open a channel to a service as `role`; use it with `async with`.

        Args:
            service: router, features, local, remote or audit.
            role: One of launcher/keys.py, such as caller or auditor; or `nobody`, which
                sends no token.
            deadline_s: Deadline in seconds of calls that come without one.
        """
        import grpc.aio  # noqa: PLC0415 - a second; not for `twinpath --help`

        from services.chassis.channels import Channel, message_options  # noqa: PLC0415
        from services.chassis.identity import TokenFile  # noqa: PLC0415

        file = None if role == "nobody" else self.token_file(role)
        raw = grpc.aio.insecure_channel(
            self.address(service),
            options=[*message_options(MAX_MESSAGE_BYTES), ("grpc.enable_retries", 0)],
        )
        return Channel(raw, deadline_s, TokenFile(file).token if file is not None else None)


def connect(folder: Path | None = None) -> Connection:
    """Find the mesh.

    Args:
        folder: The mesh's folder; None means TWINPATH_HOME, or `.twinpath` in the checkout.

    Raises:
        MeshNotRunningError: No mesh runs, and no environment variable names its router.
    """
    try:
        return Connection(read((folder or home()) / "run"))
    except MeshNotRunningError:
        if os.environ.get("TWINPATH_ROUTER_ADDRESS"):
            return Connection(None)
        raise


def run(name: str, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run a command's work against the mesh; on an error show it and exit with 1.

    Args:
        name: The root span's name, such as "twinpath infer".
        work: What to do; raises grpc.RpcError or ServiceError when the mesh says no.
    """
    import grpc  # noqa: PLC0415 - a second; not for `twinpath --help`

    from services.chassis.errors import ServiceError, from_rpc_error  # noqa: PLC0415

    try:
        mesh = connect()
        with root_span(mesh, name):
            return asyncio.run(_awaited(work, mesh))
    except MeshNotRunningError as error:
        console.show_not_running(str(error))
    except ServiceError as error:
        console.show_error(error)
    except grpc.RpcError as error:
        console.show_error(from_rpc_error(error))
    raise SystemExit(1)


async def _awaited(work: Callable[[Connection], Awaitable[T]], mesh: Connection) -> T:
    return await work(mesh)


@contextlib.contextmanager
def root_span(mesh: Connection, name: str) -> Iterator[None]:
    """Open the root span of a trace, if spans go anywhere; they are sent before this returns."""
    endpoint = mesh.description.otlp_endpoint if mesh.description is not None else ""
    if endpoint:
        os.environ.setdefault(_ENDPOINT, endpoint)
    if not os.environ.get(_ENDPOINT):
        yield
        return
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "2")  # seconds; a dead collector is no wait
    from opentelemetry import trace  # noqa: PLC0415 - half a second

    from services.chassis import telemetry  # noqa: PLC0415

    provider = telemetry.setup("cli")
    try:
        with trace.get_tracer(__name__).start_as_current_span(name):
            yield
    finally:
        if provider is not None:
            provider.shutdown()
