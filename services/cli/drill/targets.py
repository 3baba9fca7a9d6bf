"""What has to hold in a drill, and whether it did. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.cli.drill.stats import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Bounds; None: not asked for. Shares in 0..1, times in seconds.

    Attributes:
        success: Least share of counted requests answered, over the whole drill.
        after_opening: The same from the moment when the breaker opened.
        open_s: Longest time from the fault until the plan leaves the broken candidate out.
        close_s: Longest time from the healing until it is back.
        normal_s: Longest time from the healing until all is as before.
        p99_times: How many times that of before the p99 may be while the fault lasts.
    """

    success: float
    after_opening: float | None = None
    open_s: float | None = None
    close_s: float | None = None
    normal_s: float | None = None
    p99_times: float | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One target, and what was seen. `seen` is None where it never happened."""

    name: str
    wanted: str
    seen: float | None
    held: bool


def judge(targets: Targets, report: Report, restricted_at_vendor: int) -> list[Check]:
    """Compare a drill's report with its targets, and count what must not have left."""
    opened = None if report.after_opening is None else report.after_opening.success
    checks = [
        _least("success", targets.success, report.total.success),
        _least("success after opening", targets.after_opening, opened),
        _most("time to open", targets.open_s, report.time_to_open_s),
        _most("time to close", targets.close_s, report.time_to_close_s),
        _most("back to normal", targets.normal_s, report.normal_after_s),
        _times(targets.p99_times, report),
    ]
    left = Check(
        "restricted at the vendor", "= 0", float(restricted_at_vendor), restricted_at_vendor == 0
    )
    return [*(check for check in checks if check is not None), left]


def _least(name: str, wanted: float | None, seen: float | None) -> Check | None:
    if wanted is None:
        return None
    return Check(name, f">= {wanted:.1%}", seen, seen is not None and seen >= wanted)


def _most(name: str, wanted: float | None, seen: float | None) -> Check | None:
    if wanted is None:
        return None
    return Check(name, f"<= {wanted:g} s", seen, seen is not None and seen <= wanted)


def _times(wanted: float | None, report: Report) -> Check | None:
    if wanted is None:
        return None
    before, during = report.before.p99_ms, report.during.p99_ms
    seen = None if not before or during is None else during / before
    held = seen is not None and seen <= wanted
    return Check("p99 during / before", f"<= {wanted:g} times", seen, held)
