"""The launcher's steps on the console: a line each, with its time, while it works."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_NOTE_WIDTH = 56


class Steps:
    """Shows steps; on a terminal they move, elsewhere each is a line when it is over."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._latest: TaskID | None = None
        self._live = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}[/]"),
            console=console,
        )

    def begin(self, step: str) -> None:
        """A step begins."""
        if self._console.is_terminal:
            self._latest = self._live.add_task(step, total=1, note="")
            self._tasks[step] = self._latest

    def note(self, step: str, line: str) -> None:
        """A running step has something to say; the newest is shown."""
        del step
        if self._latest is not None:
            text = line.strip().replace("[", "\\[")
            self._live.update(self._latest, note=text[:_NOTE_WIDTH])

    def end(self, step: str, seconds: float, *, ok: bool) -> None:
        """A step is over."""
        if not self._console.is_terminal:
            self._console.print(f"{'✓' if ok else '✗'} {step} ({seconds:.1f} s)")
            return
        task = self._tasks[step]
        if ok:
            self._live.update(task, completed=1, note="")
        else:
            self._live.update(task, description=f"[red]✗ {step}[/]", note="")
            self._live.stop_task(task)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
