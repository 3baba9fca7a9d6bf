"""Tells the whole story: starts a mesh of its own, shows the five points, stops everything."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from services.chassis import telemetry
from services.chassis.errors import ServiceError
from services.cli import console as consoles
from services.cli.demo.evidence import Evidence, Point
from services.cli.demo.one_trace import one_trace
from services.cli.demo.proof import proof
from services.cli.demo.restricted import restricted
from services.cli.demo.same_input import same_input
from services.cli.demo.stage import Stage
from services.cli.demo.vendor_down import vendor_down
from services.cli.description import MeshNotRunningError, home, read
from services.cli.launcher.layout import Layout, laptop
from services.cli.launcher.mesh import Mesh, MeshOptions
from services.cli.operate import start_or_explain
from services.cli.steps import Steps

POINTS = (
    Point(
        "One input, both paths",
        "The same patient is asked about here (Triton) and at a vendor (a stand-in). "
        "Callers name a task; both paths get the same bytes.",
        same_input,
    ),
    Point(
        "Restricted data stays, even with the local path down",
        "tumour_triage is restricted. Triton is killed, so nobody may answer; "
        "the vendor could, and must not be asked.",
        restricted,
    ),
    Point(
        "The vendor is down, the answer comes anyway",
        "diabetes_progression may use either path. It prefers the vendor now; then that goes away.",
        vendor_down,
    ),
    Point(
        "The audit log proves itself",
        "Every decision is a leaf of a Merkle tree under signed checkpoints. "
        "Anybody with the public key can check a copy, offline.",
        proof,
    ),
    Point(
        "One decision, one trace",
        "The vendor fails this one request, so the decision tries both paths. "
        "Every process adds its spans, Redis and Triton too.",
        one_trace,
    ),
)


async def tell(console: Console) -> int:
    """Run the demo; returns the exit code: 0 only if every point held."""
    started = time.perf_counter()
    console.print(Rule("[bold]Twinpath: one model question, two paths", align="left"))
    console.print(
        "Real Triton, Valkey and Feast, five gRPC services. The vendor is a stand-in process.\n",
        style="dim",
    )
    layout = _fresh_layout()
    if layout is None:
        return 1
    with Steps(console) as steps:
        mesh = Mesh(MeshOptions(layout), steps)
        failure = await start_or_explain(mesh)
    if failure:
        consoles.show_problem("the mesh did not start", failure)
        return 1
    ready = time.perf_counter()
    results: list[tuple[Point, Evidence, float]] = []
    if mesh.wiring.otlp_endpoint:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = mesh.wiring.otlp_endpoint
    provider = telemetry.setup("cli")
    try:
        async with Stage(mesh) as stage:
            for number, point in enumerate(POINTS, start=1):
                results.append(await _show(console, stage, number, point))
    finally:
        shown = time.perf_counter()
        if provider is not None:
            provider.shutdown()
        await mesh.stop()
    left = [name for name, process in mesh.processes.items() if process.running]
    stopped = time.perf_counter()
    _summary(console, results, ready - started, stopped - shown, stopped - started)
    if left:
        consoles.show_problem("still running", ", ".join(left))
    console.print(f"Logs and the audit log stay in {escape(str(layout.runtime))}", style="dim")
    return 0 if len(results) == len(POINTS) and not left and _all_held(results) else 1


async def _show(
    console: Console, stage: Stage, number: int, point: Point
) -> tuple[Point, Evidence, float]:
    console.print()
    console.print(Rule(f"[bold]{number}  {point.title}", align="left"))
    console.print(Text(point.about, style="dim"))
    console.print()
    evidence = Evidence()
    started = time.perf_counter()
    with console.status("working …"):
        try:
            await point.run(stage, evidence)
        except ServiceError as error:
            evidence.check(
                held=False,
                claim=f"the mesh said {error.code.name} {error.reason}: {error.message}",
            )
        except Exception as error:  # noqa: BLE001 - a point that breaks is one that did not hold
            evidence.check(held=False, claim=f"{type(error).__name__}: {error}")
    evidence.print(console)
    return point, evidence, time.perf_counter() - started


def _fresh_layout() -> Layout | None:
    """A folder of the demo's own, empty but for the models that were trained before."""
    runtime = home() / "demo"
    try:
        other = read(runtime / "run")
    except MeshNotRunningError:
        pass
    else:
        consoles.show_problem("a demo runs already", f"It is process {other.launcher_pid}.")
        return None
    shutil.rmtree(runtime, ignore_errors=True)
    layout = laptop(home(), os.environ, runtime=runtime)
    # A copy, because point 3 changes a task's file.
    catalog = runtime / "catalog"
    shutil.copytree(layout.catalog, catalog)
    return replace(layout, catalog=catalog)


def _all_held(results: list[tuple[Point, Evidence, float]]) -> bool:
    return all(evidence.held for _, evidence, _ in results)


def _summary(
    console: Console,
    results: list[tuple[Point, Evidence, float]],
    start_s: float,
    stop_s: float,
    total_s: float,
) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("")
    table.add_column("checks", justify="right")
    table.add_column("time", justify="right")
    table.add_row("", "start: data, models, features, servers, services", "", f"{start_s:.1f} s")
    for number, (point, evidence, seconds) in enumerate(results, start=1):
        mark = "[bold green]✓[/]" if evidence.held else "[bold red]✗[/]"
        held = sum(check.held for check in evidence.checks)
        checks = f"{held}/{len(evidence.checks)}"
        table.add_row(mark, f"{number}  {point.title}", checks, f"{seconds:.1f} s")
    table.add_row("", "stop: nothing is left running", "", f"{stop_s:.1f} s")
    table.add_section()
    table.add_row("", "[bold]in all", "", f"[bold]{total_s:.1f} s")
    console.print()
    console.print(Rule(align="left"))
    console.print(table)
