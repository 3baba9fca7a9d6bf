"""How drills look: one table for all, and what was missed in words."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from services.cli.drill.control import Control
from services.cli.drill.run import Result
from services.cli.drill.stats import Phase
from services.cli.drill.targets import Check

WIDTH = 132  # of the tables, also where the output is no terminal
RESTRICTED_LEAST = 1000  # in a whole set of drills
_ONE = 2  # `redis-kill` is two


def table(results: Sequence[Result]) -> Table:
    """One line for each drill. ∞: the percentile falls on a request that failed.

    `left` is how many of the restricted requests reached the vendor.
    """
    out = Table(box=None, pad_edge=False, header_style="dim")
    out.add_column("")
    out.add_column("drill", no_wrap=True)
    for name in ("success", "after\nopening", "to\nopen", "MTTR", "calls/\nrequest", "left"):
        out.add_column(name, justify="right", no_wrap=True)
    for name in ("p50/p99 ms\nbefore", "\nduring", "\nafter"):
        out.add_column(name, justify="right", no_wrap=True)
    for result in results:
        report = result.report
        opened = report.after_opening
        out.add_row(
            mark(result.held),
            result.name,
            _share(report.total.success),
            _share(opened.success if opened else None),
            _seconds(report.time_to_open_s),
            _seconds(report.mttr_s),
            _number(report.total.attempts_per_request),
            f"{result.restricted_at_vendor}/{result.restricted_asked}",
            *(_times(part) for part in (report.before, report.during, report.after)),
        )
    return out


def targets(results: Sequence[Result]) -> Table:
    """One line for each target of each drill: what was wanted, what was seen, and whether it held.

    A drill that is not named in a line is that of the line above.
    """
    out = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "drill", "target"):
        out.add_column(name, no_wrap=True)
    for name in ("wanted", "seen"):
        out.add_column(name, justify="right", no_wrap=True)
    for result in results:
        for place, check in enumerate(result.checks):
            out.add_row(
                mark(check.held),
                result.name if not place else "",
                check.name,
                check.wanted,
                _seen(check),
            )
    return out


def misses(results: Sequence[Result]) -> list[Text]:
    """What came in place of answers, where a target was missed."""
    lines = []
    for result in results:
        bad = {code: count for code, count in result.report.codes.items() if code != "OK"}
        if bad and not result.held:
            told = ", ".join(f"{count} {code}" for code, count in sorted(bad.items()))
            lines.append(Text(f"{result.name}: {told}", style="dim"))
    return lines


def restricted_asked(results: Sequence[Result]) -> int:
    """How many restricted requests all drills asked together."""
    return sum(result.restricted_asked for result in results)


def enough_asked(results: Sequence[Result]) -> bool:
    """Tell whether a whole set asked enough of them; one drill alone need not."""
    return len(results) <= _ONE or restricted_asked(results) >= RESTRICTED_LEAST


def restricted_line(results: Sequence[Result]) -> Text:
    """The restricted requests of all drills in one line; a whole set has to ask enough of them."""
    asked = restricted_asked(results)
    left = sum(result.restricted_at_vendor for result in results)
    held = left == 0 and enough_asked(results)
    wanted = f", wanted >= {RESTRICTED_LEAST:,}" if len(results) > _ONE else ""
    return Text.from_markup(
        f"{mark(held)} restricted requests: {asked:,} asked{wanted}, {left} reached the vendor"
    )


def control_line(control: Control) -> Text:
    """The positive control in one line."""
    word = "counts" if control.held else "DOES NOT COUNT"
    return Text.from_markup(
        f"{mark(control.held)} positive control: {control.sent} marked requests with the policy "
        f"off: {control.remote_alone} arrive while the remote service still checks, "
        f"{control.armed} without: the counter {word}"
    )


def mark(held: bool) -> str:
    """A tick or a cross."""
    return "[bold green]✓[/]" if held else "[bold red]✗[/]"


def _seen(check: Check) -> str:
    if check.seen is None:
        return "never"
    return f"{check.seen:.2%}" if "%" in check.wanted else f"{check.seen:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _times(part: Phase) -> str:
    both = (part.p50_ms, part.p99_ms)
    return "/".join("∞" if ms is None else f"{ms:.0f}" for ms in both)
