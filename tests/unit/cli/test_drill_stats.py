"""The drill's numbers are what they say, and a failure never makes them look better."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.drill.stats import (
    Sample,
    Transition,
    impaired_until,
    percentile,
    phase,
    report,
    within,
)


def load(
    seconds: float, bad: tuple[float, float] = (0, 0), rate: int = 100, took: float = 0.01
) -> list[Sample]:
    """A steady load in which all of `bad` fails."""
    return [
        Sample(
            intended_s=i / rate,
            ended_s=i / rate + took,
            ok=not bad[0] <= i / rate < bad[1],
            code="UNAVAILABLE" if bad[0] <= i / rate < bad[1] else "OK",
            path="local",
        )
        for i in range(int(seconds * rate))
    ]


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_with_that_share_at_or_below_it(
    values: list[float], share: float
) -> None:
    """Nearest rank: at least `share` are at or below it, and fewer are below it."""
    got = percentile(values, share)
    assert got in values
    assert sum(v <= got for v in values) >= share * len(values) - 1e-9
    assert sum(v < got for v in values) < share * len(values) + 1e-9


def test_failures_are_slower_than_every_answer() -> None:
    """With 2 % failed at once, the p99 is none, not something fast."""
    samples = [Sample(intended_s=i, ended_s=i + 0.01, ok=i >= 2) for i in range(100)]
    summary = phase(samples)
    assert summary.p50_ms == pytest.approx(10)
    assert summary.p95_ms == pytest.approx(10)
    assert summary.p99_ms is None
    assert summary.success == 0.98


def test_nothing_is_nothing() -> None:
    """A phase without requests has no success rate: neither 0 nor 1."""
    assert phase([]).success is None
    assert percentile([], 0.5) is None


def test_phases_go_by_the_intended_start() -> None:
    """A request of before the fault that ended in it belongs to before."""
    samples = [Sample(intended_s=9.9, ended_s=12.0, ok=True)]
    summary = report(samples, fault_s=10, healed_s=40, end_s=60)
    assert (summary.before.requests, summary.during.requests) == (1, 0)
    assert within(samples, 10) == []


def test_an_outage_of_two_seconds_that_callers_noticed() -> None:
    """MTTR is how long seconds were bad, success is over all, codes and paths are counted."""
    summary = report(load(60, bad=(10, 12)), fault_s=10, healed_s=40, end_s=60)
    assert summary.mttr_s == 2.0
    assert summary.normal_after_s == 0.0
    assert summary.total.success == pytest.approx(1 - 200 / 6000)
    assert summary.codes == {"OK": 5800, "UNAVAILABLE": 200}
    assert summary.paths == {"local": 5800}


def test_an_outage_that_nobody_noticed() -> None:
    """A few lost requests within the tolerated share are an MTTR of zero."""
    samples = load(60)
    samples[1100] = Sample(intended_s=11.0, ended_s=11.5, ok=False, code="UNAVAILABLE")
    assert report(samples, fault_s=10, healed_s=40, end_s=60).mttr_s == 0.0


def test_an_outage_that_never_ended() -> None:
    """If the last second is bad, there is no repair time."""
    summary = report(load(60, bad=(10, 60)), fault_s=10, healed_s=40, end_s=60)
    assert summary.mttr_s is None
    assert summary.normal_after_s is None


def test_slow_is_not_normal() -> None:
    """All answered, but three seconds after healing still ten times slower than before."""
    samples = load(43) + [
        Sample(intended_s=43 + i / 100, ended_s=43.4 + i / 100, ok=True) for i in range(300)
    ]
    samples += [
        Sample(intended_s=46 + i / 100, ended_s=46.01 + i / 100, ok=True) for i in range(900)
    ]
    summary = report(samples, fault_s=10, healed_s=40, end_s=55)
    assert summary.mttr_s == 0.0
    assert summary.normal_after_s == 6.0


def test_opening_and_closing_come_from_the_breakers() -> None:
    """First opening after the fault, last closing after the healing."""
    summary = report(
        load(60, bad=(10, 10.5)),
        fault_s=10,
        healed_s=40,
        end_s=60,
        transitions=[
            Transition(43.0, "remote", opened=False),
            Transition(2.0, "remote", opened=True),
            Transition(3.0, "remote", opened=False),
            Transition(10.5, "remote", opened=True),
            Transition(12.0, "other", opened=True),
            Transition(41.0, "other", opened=False),
        ],
    )
    assert summary.time_to_open_s == 0.5
    assert summary.time_to_close_s == 3.0
    assert summary.after_opening is not None
    assert summary.after_opening.success == 1.0


def test_a_breaker_that_stayed_open_never_closed() -> None:
    """One that is open at the end means no time to close; none at all, neither."""
    samples = load(60)
    stuck = [Transition(11.0, "remote", opened=True)]
    open_still = report(samples, fault_s=10, healed_s=40, end_s=60, transitions=stuck)
    assert open_still.time_to_close_s is None
    quiet = report(samples, fault_s=10, healed_s=40, end_s=60)
    assert (quiet.time_to_open_s, quiet.time_to_close_s, quiet.after_opening) == (None, None, None)


def test_the_report_is_json() -> None:
    """No infinities, no objects: any JSON reader can read it."""
    summary = report(load(60, bad=(10, 60)), fault_s=10, healed_s=40, end_s=60)
    text = json.dumps(summary.as_json(), allow_nan=False)
    assert json.loads(text)["during"]["success"] == 0.0


@given(bad=st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_impairment_ends_with_the_last_bad_second(bad: tuple[int, int]) -> None:
    """For any bad interval in whole seconds."""
    first, last = min(bad), max(bad)
    got = impaired_until(load(21, bad=(first, last), rate=10), 0, 21)
    assert got == (float(last) if last > first else 0.0)


def test_attempts_per_request() -> None:
    """Retries, hedges and fallbacks are in it; refused requests count with none."""
    samples = [Sample(intended_s=0, ended_s=1, ok=True, attempts=n) for n in (1, 2, 0)]
    assert phase(samples).attempts_per_request == 1.0
    assert not math.isnan(samples[0].latency_s)
