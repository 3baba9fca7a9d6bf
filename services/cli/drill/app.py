"""`twinpath drill NAME`: break something on purpose, and measure what callers notice."""

from __future__ import annotations

import json
import os
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import console
from services.cli.description import home
from services.cli.operate import run_until_signal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.cli.drill.arena import Arena
    from services.cli.drill.control import Control
    from services.cli.drill.run import Result


FEATURES_KILL = "redis-kill-features"


class Name(StrEnum):
    """The drills."""

    OUTAGE = "outage"
    SLOW = "slow"
    FLAKY = "flaky"
    RATELIMIT = "ratelimit"
    STALL = "stall"
    OVERLOAD = "overload"
    TRITON_KILL = "triton-kill"
    TRITON_STOP = "triton-stop"
    AUDIT_KILL = "audit-kill"
    REDIS_KILL = "redis-kill"
    NOISY = "noisy"
    ALL = "all"


def drill(
    name: Annotated[Name, typer.Argument(help="Which.")],
    seconds: Annotated[
        float, typer.Option(min=6, help="Length of each; the fault is in force from 1/6 to 2/3.")
    ] = 60.0,
    rate: Annotated[float, typer.Option(min=1, help="Requests a second (not for overload).")] = 100,
    control: Annotated[
        bool, typer.Option(help="Also switch the policy off, and see the counter move.")
    ] = True,
) -> None:
    """Break something in a mesh of its own, under load, and measure what callers notice.

    Prints a table, writes JSON to .twinpath/drills, and exits with 0 only if every target was met.
    """
    names = [n.value for n in Name if n is not Name.ALL] if name is Name.ALL else [name.value]
    if Name.REDIS_KILL in names:  # there are two: the state store, and the one of the features
        names.append(FEATURES_KILL)
    raise SystemExit(run_until_signal(_drill(names, seconds, rate, control=control)))


async def _drill(names: Sequence[str], seconds: float, rate: float, *, control: bool) -> int:
    from services.cli.drill.arena import Arena  # noqa: PLC0415 - seconds; not for `--help`
    from services.cli.embedded.process import ProcessError  # noqa: PLC0415 - as above
    from services.cli.embedded.triton_runtime import TritonUnavailableError  # noqa: PLC0415
    from services.cli.launcher.ground import GroundError  # noqa: PLC0415
    from services.cli.steps import Steps  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        try:
            with Steps(console.out) as steps:
                arena = await stack.enter_async_context(Arena(steps))
        except (GroundError, ProcessError, TritonUnavailableError, OSError) as error:
            console.show_problem("the mesh did not start", str(error))
            return 1
        results, proof = await _work(arena, names, seconds, rate, control=control)
    return _tell(results, proof)


async def _work(
    arena: Arena, names: Sequence[str], seconds: float, rate: float, *, control: bool
) -> tuple[list[Result], Control | None]:
    from services.cli.drill.control import control as take_control  # noqa: PLC0415 - as above
    from services.cli.drill.run import run  # noqa: PLC0415
    from services.cli.drill.scenes import DRILLS  # noqa: PLC0415

    results = []
    for name in names:
        console.out.print(f"[bold]{name}[/]  {DRILLS[name].about}; {seconds:g} s …")
        result = await run(arena, name, seconds=seconds, rate=rate)
        _write(name, result.as_json())
        results.append(result)
    if not control:
        return results, None
    console.out.print("[bold]control[/]  the policy is switched off …")
    return results, await take_control(arena)


def _tell(results: Sequence[Result], proof: Control | None) -> int:
    from services.cli.drill import show  # noqa: PLC0415 - as above

    console.out.width = max(console.out.width, show.WIDTH)  # figures are not cut off
    for table in (show.table(results), show.targets(results)):
        console.out.print()
        console.out.print(table, crop=False)
    for line in show.misses(results):
        console.out.print(line)
    console.out.print(show.restricted_line(results))
    if proof is not None:
        console.out.print(show.control_line(proof))
    held = all(result.held for result in results) and (proof is None or proof.held)
    held = held and show.enough_asked(results)
    path = _write(
        "last",
        {
            "held": held,
            "drills": [result.as_json() for result in results],
            "restricted_asked": show.restricted_asked(results),
            "restricted_at_vendor": sum(result.restricted_at_vendor for result in results),
            "control": None if proof is None else {**asdict(proof), "held": proof.held},
        },
    )
    console.out.print(f"figures: {path}", style="dim")
    return 0 if held else 1


def _write(name: str, content: dict[str, Any]) -> Path:
    """Write one file of figures, with the time and the machine's load beside them."""
    folder = home() / "drills"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()}
    dated = {"unix_s": int(time.time()), "machine": machine, **content}
    path.write_text(json.dumps(dated, indent=2) + "\n", encoding="utf-8")
    return path
