"""Faults against invariants, at length, in one table: `make chaos`, or `python -m tests.chaos`.

Each part repeats one kind of fault until it has happened as often as wanted, seed after seed, and
counts the promises that were broken. What was done is kept in a file, so that a run that was
stopped goes on where it was; a broken promise is kept with its seed, and repeated with
`--only PART --seed SEED`. Exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos import audit_crashes, audit_kills
from tests.unit.router.seeds import all_broken

KILLS = 100  # in one log
STORIES = 5_000  # of the router, side by side on all cores
_SAVE_EVERY_S = 10.0


@dataclass(frozen=True)
class Part:
    """A kind of fault. `step(seed)` inflicts it and counts: times, acknowledged, and more."""

    name: str
    promise: str
    wanted: int
    step: Callable[[int], Counter[str]]


@dataclass
class Done:
    """How far a part is."""

    next_seed: int = 1
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def kills(seed: int) -> Counter[str]:
    """Kill the audit service and the router, by turns, a hundred times."""
    with tempfile.TemporaryDirectory() as folder:
        counts = asyncio.run(audit_kills.run(Path(folder), KILLS, seed, 1_000 * KILLS))
    found = Counter({k: v for k, v in asdict(counts).items() if k != "kills"})
    return found + Counter(times=counts.kills)


def stories(seed: int) -> Counter[str]:
    """Live the router's simulated stories."""
    first = (seed - 1) * STORIES
    broken = [f"story {at}: {'; '.join(what)}" for at, what in all_broken(first, STORIES)]
    assert not broken, broken[:3]
    return Counter(times=STORIES)


PARTS = (
    Part("stories", "router's invariants in simulated stories", 100_000, stories),
    Part(
        "power", "power failure while appending: 0 acknowledged missing", 10_000,
        audit_crashes.crash,
    ),
    Part(
        "retention", "power failure while payloads are removed: 0 lost, 0 back", 10_000,
        audit_crashes.crash_in_retention,
    ),
    Part(
        "disk", "EIO, ENOSPC: 0 acknowledged after a failed sync", 500,
        audit_crashes.failed_operation,
    ),
    Part(
        "mutations", "flip, delete, reorder, truncate, rollback, ...: all found", 10_000,
        audit_crashes.mutation,
    ),
    Part(
        "kills", "kill -9 of audit and router by turns: 0 missing, 0 forks", 1_000, kills,
    ),
)  # fmt: skip


def read(path: Path) -> dict[str, Done]:
    """Return what was done before."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    return {
        name: Done(**{**done, "counts": Counter(done["counts"])}) for name, done in kept.items()
    }


def write(path: Path, done: dict[str, Done]) -> None:
    """Keep it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({n: vars(d) for n, d in done.items()}, indent=1) + "\n")
    temporary.replace(path)


def live(part: Part, done: Done, wanted: int, until: float, keep: Callable[[], None]) -> None:
    """Go on with a part until it was done as often as wanted, or time is up."""
    saved = start = time.monotonic()
    before = done.seconds
    while done.counts["times"] < wanted and time.monotonic() < until:
        try:
            done.counts += part.step(done.next_seed)
        except AssertionError as error:
            done.broken.append(f"seed {done.next_seed}: {error}")
            done.counts["times"] += 1
        done.next_seed += 1
        done.seconds = before + time.monotonic() - start
        if time.monotonic() - saved > _SAVE_EVERY_S:
            keep()
            saved = time.monotonic()
    keep()


def show(done: dict[str, Done], scale: float) -> Table:
    """Return the table."""
    table = Table(title="Faults against promises")
    for name in ("part", "promise"):
        table.add_column(name)
    for name in ("times", "wanted", "acknowledged", "broken", "s"):
        table.add_column(name, justify="right")
    for part in PARTS:
        so_far = done.get(part.name, Done())
        more = {k: v for k, v in so_far.counts.items() if k not in {"times", "acknowledged"} and v}
        told = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in more.items())
        table.add_row(
            part.name,
            part.promise + (f"\n{told}" if told else ""),
            f"{so_far.counts['times']:,}",
            f"{max(1, int(part.wanted * scale)):,}",
            f"{so_far.counts['acknowledged']:,}",
            str(len(so_far.broken)),
            f"{so_far.seconds:,.0f}",
        )
    return table


def main() -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[part.name for part in PARTS], action="append")
    parser.add_argument("--seed", type=int, help="only this one, and nothing is kept")
    parser.add_argument("--scale", type=float, default=1.0, help="of how often, such as 0.01")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    parser.add_argument("--state", type=Path, default=Path(".twinpath/chaos.json"))
    parser.add_argument("--anew", action="store_true", help="forget what was done before")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what a simulated disk makes the service say
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it started ends with it
    chosen = [part for part in PARTS if not given.only or part.name in given.only]
    if given.seed is not None:
        for part in chosen:
            sys.stdout.write(f"{part.name}, seed {given.seed}: {dict(part.step(given.seed))}\n")
        return 0
    done = {} if given.anew else read(given.state)
    until = time.monotonic() + given.minutes * 60
    for part in chosen:
        wanted = max(1, int(part.wanted * given.scale))
        so_far = done.setdefault(part.name, Done())
        live(part, so_far, wanted, until, lambda: write(given.state, done))
    Console(width=120).print(show(done, given.scale))
    broken = [f"{name}, {what}" for name, d in done.items() for what in d.broken]
    for what in broken:
        sys.stdout.write(f"BROKEN  {what}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
