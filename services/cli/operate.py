"""`twinpath up`, `demo` and `trace`: the mesh on this machine, and a look into it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import console
from services.cli.client import connect
from services.cli.description import MeshNotRunningError, home

if TYPE_CHECKING:
    from services.cli.launcher.mesh import Mesh

_LOOK_S = 0.5


def up(
    *,
    edge: Annotated[
        bool, typer.Option("--edge", help="The five services in one process, for a small node.")
    ] = False,
) -> None:
    """Start the mesh on this machine and keep it running until Ctrl-C.

    Valkey, Triton, the stand-in vendor and the five services, each a process of its own. Real
    servers take their place by TWINPATH_STATE_URL, TWINPATH_FEATURES_URL, TWINPATH_TRITON_URL and
    OTEL_EXPORTER_OTLP_ENDPOINT.
    """
    raise SystemExit(run_until_signal(_up(edge=edge)))


def demo() -> None:
    """Show the whole story on real parts: five points, each checked.

    Exits with 0 only if every point held, and leaves nothing running.
    """
    from services.cli.demo.story import tell  # noqa: PLC0415 - not for `--help`

    raise SystemExit(run_until_signal(tell(console.out)))


def trace(
    trace_id: Annotated[
        str, typer.Argument(help="32 hex digits; none: the newest decision's.")
    ] = "",
) -> None:
    """Show a trace of the running mesh as a tree."""
    from services.cli.tracing.jaeger import JaegerTraces  # noqa: PLC0415 - as above
    from services.cli.tracing.query import Traces, TracesGoneError  # noqa: PLC0415 - as above
    from services.cli.tracing.tree import tree  # noqa: PLC0415
    from twinpath.telemetry import DECISION_ID  # noqa: PLC0415

    try:
        mesh = connect()
        traces: Traces | JaegerTraces | None = None
        if mesh.description is not None and "jaeger" in mesh.description.urls:
            traces = JaegerTraces(mesh.description.urls["jaeger"])
        elif mesh.description is not None and mesh.description.traces_url:
            traces = Traces(mesh.description.traces_url)
        if traces is None:
            endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "another collector")
            console.show_problem("no traces here", f"Spans go to {endpoint}: look there.")
            raise SystemExit(1)
        newest = traces.newest(1, DECISION_ID)
        chosen = trace_id or (newest[0] if newest else "")
        spans = traces.spans(chosen) if chosen else []
    except MeshNotRunningError as error:
        console.show_not_running(str(error))
        raise SystemExit(1) from None
    except TracesGoneError as error:
        console.show_problem("the collector does not answer", str(error))
        raise SystemExit(1) from None
    if not spans:
        what = f"Trace {trace_id} is not known." if trace_id else "No decision has come in yet."
        console.show_problem("no such trace", f"{what} Spans arrive within a second of a call.")
        raise SystemExit(1)
    console.out.print(tree(spans))


def run_until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run work that cleans up behind itself; TERM, HUP and Ctrl-C cancel it, and it cleans up."""

    async def guarded() -> int:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        return 130


async def _up(*, edge: bool) -> int:
    from services.cli.embedded import jaeger  # noqa: PLC0415 - a second
    from services.cli.launcher.layout import laptop  # noqa: PLC0415 - the same
    from services.cli.launcher.mesh import Mesh, MeshOptions  # noqa: PLC0415 - the same
    from services.cli.steps import Steps  # noqa: PLC0415
    from services.cli.welcome import welcome  # noqa: PLC0415

    options = MeshOptions(
        laptop(home(), os.environ), fixed_ports=True, edge=edge, jaeger=jaeger.binary()
    )
    with Steps(console.out) as steps:
        mesh = Mesh(options, steps)
        failure = await start_or_explain(mesh)
    if failure:
        console.show_problem("the mesh did not start", failure)
        return 1
    try:
        console.out.print(welcome(mesh))
        await _watch(mesh)
    finally:
        console.out.print("\nstopping …")
        await mesh.stop()
        console.out.print("stopped; nothing is left running")
    return 0


async def start_or_explain(mesh: Mesh) -> str:
    """Start a mesh; return what went wrong in words, or nothing. It has stopped by then."""
    from services.cli.embedded.process import ProcessError  # noqa: PLC0415 - not for `--help`
    from services.cli.embedded.triton_runtime import TritonUnavailableError  # noqa: PLC0415
    from services.cli.launcher.ground import GroundError  # noqa: PLC0415
    from services.cli.launcher.mesh import MeshRunningError  # noqa: PLC0415

    try:
        await mesh.start()
    except (GroundError, MeshRunningError, ProcessError, TritonUnavailableError, OSError) as error:
        return str(error)
    return ""


async def _watch(mesh: Mesh) -> None:
    """Say when a process ends by itself. Until cancelled."""
    gone: set[str] = set()
    while True:
        await asyncio.sleep(_LOOK_S)
        for name, process in mesh.processes.items():
            if process.running:
                gone.discard(name)
            elif name not in gone:
                gone.add(name)
                title = f"{name} ended with status {process.returncode}"
                console.show_problem(title, process.log_tail())
