"""`twinpath models quantize`: an INT8 copy of a local model, measured beside the original."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import console
from services.cli.description import home

if TYPE_CHECKING:
    from rich.table import Table

_REFUSED = 1


def quantize(
    model: Annotated[str, typer.Argument(help="A local model that the training wrote.")],
    version: Annotated[str, typer.Option(help="Its version; the newest, if not given.")] = "",
    method: Annotated[
        str, typer.Option(metavar="dynamic|static|both", help="How; static is calibrated.")
    ] = "both",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, write nothing.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Write it even if it does not pay.")
    ] = False,
    enlist: Annotated[
        bool, typer.Option("--register/--no-register", help="Make it a candidate of its tasks.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Quantize a model to INT8, and say whether that pays.

    Size, latency, agreement and the task's metrics stand beside the original's. What pays is
    written as MODEL_int8, signed, with its lineage in its card, and becomes a candidate of its
    parent's tasks, right after it, where it has any. Exits with 1 when it does not pay.
    """
    from services.cli.launcher.layout import ROOT, laptop  # noqa: PLC0415 - not for `--help`

    layout = laptop(home(), os.environ)
    arguments = ["--version", version, "--method", method, "--models", str(layout.trained)]
    arguments += ["--repo", str(layout.feature_repo)]
    arguments += ["--dry-run"] * dry_run + ["--anyway"] * anyway
    key = layout.artifact_keys / "artifacts.key"
    if not os.environ.get("TWINPATH_ARTIFACT_KEY") and key.exists():
        arguments += ["--key", str(key)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "deploy.training.quantize", model, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, _REFUSED) or not done.stdout.startswith("{"):
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        console.show_problem("not quantized", last[0])
        raise SystemExit(done.returncode or _REFUSED)
    report = json.loads(done.stdout)
    report["candidate_of"] = _enlist(layout.catalog, report) if enlist else []
    if as_json:
        console.out.print_json(json.dumps(report))
    else:
        console.out.print(table(report))
        console.out.print(conclusion(report))
    raise SystemExit(done.returncode)


def _enlist(catalog: Path, report: dict[str, Any]) -> list[str]:
    """Make what was written a candidate; returns of which tasks."""
    from services.cli.models_register import (  # noqa: PLC0415
        NoTaskError,
        RegisterError,
        register,
    )

    if not report["written"]:
        return []
    note = f"INT8 ({report['best']}) of {report['model']} version {report['version']}"
    try:
        return register(catalog, report["model"], f"{report['model']}_int8", note)
    except NoTaskError:
        return []  # nobody asks the parent either: it is there to be loaded
    except RegisterError as error:
        console.show_problem("written, but not a candidate", str(error))
        raise SystemExit(_REFUSED) from None


def table(report: dict[str, Any]) -> Table:
    """Return the report's variants side by side."""
    from rich.table import Table  # noqa: PLC0415 - not for `--help`

    shown = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    variants = {"original": report["original"], **report["copies"]}
    for heading in (f"{report['model']} {report['version']}", *variants):
        shown.add_column(
            heading, justify="left" if heading.startswith(report["model"]) else "right"
        )
    rows: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("bytes", lambda v: f"{v['bytes']:,}"),
        ("1 row, µs", lambda v: f"{v['one_us']:g}"),
        ("64 rows, µs", lambda v: f"{v['batch_us']:g}"),
        ("agreement", lambda v: f"{v['agreement']:.1%}"),
    )
    for title, text in rows:
        shown.add_row(title, *(text(v) for v in variants.values()))
    for metric in report["original"]["metrics"]:
        shown.add_row(metric, *(f"{v['metrics'][metric]:.4f}" for v in variants.values()))
    return shown


def conclusion(report: dict[str, Any]) -> str:
    """Return what follows from it, in a sentence or two."""
    best = report["best"]
    name = f"{report['model']}_int8"
    why = report["copies"][best]["does_not_pay"]
    verdict = (
        f"[yellow]It does not pay[/]: {why} ({best})." if why else f"[green]It pays[/] ({best})."
    )
    if not report["written"]:
        return f"{verdict} Nothing was written."
    told = f"{verdict} Written to {report['written']}."
    if report.get("candidate_of"):
        tasks = ", ".join(report["candidate_of"])
        return (
            f"{told}\n{name} is a candidate of {tasks} now; a running mesh loads it within seconds "
            f"(twinpath models states {name})."
        )
    return f"{told}\nLoad it: twinpath models load {name} {report['version']}"
