"""What a point of the demo found: things to look at, and checks that held or did not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from services.cli.demo.stage import Stage


@dataclass(frozen=True, slots=True)
class Check:
    """One claim, and whether it held."""

    held: bool
    claim: str


@dataclass(slots=True)
class Evidence:
    """Collects what a point shows. A point holds if it made checks and all of them held."""

    shown: list[RenderableType] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether the point holds."""
        return bool(self.checks) and all(check.held for check in self.checks)

    def show(self, thing: RenderableType) -> None:
        """Show something beside the checks."""
        self.shown.append(thing)

    def check(self, held: bool, claim: str) -> None:
        """Make a claim."""
        self.checks.append(Check(bool(held), claim))

    def print(self, console: Console) -> None:
        """Print all of it."""
        for thing in self.shown:
            console.print(Padding(thing, (0, 0, 1, 2)))
        for check in self.checks:
            line = Table.grid(padding=(0, 1))
            mark = Text("✓", "bold green") if check.held else Text("✗", "bold red")
            line.add_row(mark, Text(check.claim, "" if check.held else "red"))
            console.print(Padding(line, (0, 0, 0, 2)))


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the demo.

    Attributes:
        title: What holds.
        about: One or two sentences for somebody who sees this for the first time.
        run: Does it; raises nothing that it can tell as a check that did not hold.
    """

    title: str
    about: str
    run: Callable[[Stage, Evidence], Awaitable[None]]
