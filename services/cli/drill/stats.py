"""What a drill's requests say: pure functions from samples to the numbers in the table.

All times are seconds since the start of the load, of each request's *intended* start. A request
that failed counts in percentiles as slower than every answer: leaving it out would make an outage
look fast.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request of the load."""

    intended_s: float  # when it should have started
    ended_s: float
    ok: bool
    code: str = "OK"  # of the answer, or why there is none
    attempts: int = 1  # calls of candidates that were made for it
    label: str = ""  # what kind of request it was: a priority, a data class
    path: str = ""  # which path answered

    @property
    def latency_s(self) -> float:
        """From the intended start, so that waiting behind a slow system counts."""
        return self.ended_s - self.intended_s


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a drill. Percentiles are None where they fall on a request that failed."""

    requests: int
    success: float | None  # share, None without requests
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    attempts_per_request: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What one drill showed. Times are None if it never happened."""

    total: Phase
    before: Phase
    during: Phase
    after: Phase
    time_to_open_s: float | None  # from the fault to the first breaker that opened
    after_opening: Phase | None  # from then to the end of the load
    time_to_close_s: float | None  # from the healing to the last breaker that closed
    mttr_s: float | None  # how long callers noticed the fault: 0 if they did not
    normal_after_s: float | None  # from the healing until all was as before
    codes: dict[str, int]
    paths: dict[str, int]

    def as_json(self) -> dict[str, object]:
        """Return plain values for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Transition:
    """A breaker's change of state, seen at a time since the start of the load."""

    at_s: float
    candidate: str
    opened: bool  # otherwise closed


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile: the smallest value with `share` of all at or below it."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def within(samples: Iterable[Sample], since_s: float, until_s: float = math.inf) -> list[Sample]:
    """Return the samples whose intended start lies in since <= t < until."""
    return [sample for sample in samples if since_s <= sample.intended_s < until_s]


def phase(samples: Sequence[Sample]) -> Phase:
    """Sum up some samples."""
    if not samples:
        return Phase(0, None, None, None, None, None)
    times = [sample.latency_s if sample.ok else math.inf for sample in samples]
    return Phase(
        requests=len(samples),
        success=sum(sample.ok for sample in samples) / len(samples),
        p50_ms=_milliseconds(percentile(times, 0.50)),
        p95_ms=_milliseconds(percentile(times, 0.95)),
        p99_ms=_milliseconds(percentile(times, 0.99)),
        attempts_per_request=sum(sample.attempts for sample in samples) / len(samples),
    )


def impaired_until(
    samples: Sequence[Sample],
    since_s: float,
    until_s: float,
    *,
    success: float = 0.99,
    p95_s: float = math.inf,
    bin_s: float = 1.0,
) -> float | None:
    """Return when the last bad second ended: `since_s` if none was bad, None if the last one is.

    A second is bad if fewer than `success` of its requests were answered, or if their p95 is above
    `p95_s`. Seconds without requests say nothing. What is cut off at the end counts as a second.
    """
    end, last_is_bad = since_s, False
    for number in range(math.ceil((until_s - since_s) / bin_s)):
        start = since_s + number * bin_s
        stop = min(start + bin_s, until_s)
        here = phase(within(samples, start, stop))
        if here.success is None:
            continue
        p95 = math.inf if here.p95_ms is None else here.p95_ms / 1000
        last_is_bad = here.success < success or p95 > p95_s
        if last_is_bad:
            end = stop
    return None if last_is_bad else end


def report(
    samples: Sequence[Sample],
    *,
    fault_s: float,
    healed_s: float,
    end_s: float,
    transitions: Sequence[Transition] = (),
    success: float = 0.99,
    slower: float = 2.0,
    slack_s: float = 0.05,
) -> Report:
    """Sum up a drill.

    Args:
        samples: all requests, in any order.
        fault_s: when the fault began.
        healed_s: when it ended.
        end_s: when the load ended.
        transitions: of the breakers concerned.
        success: the share below which a second counts as noticed by callers.
        slower: a second is as before if its p95 is at most so many times that of before ...
        slack_s: ... or that and so much more, for what is fast and noisy.
    """
    ordered = sorted(transitions, key=lambda transition: transition.at_s)
    opened = next((t.at_s for t in ordered if t.opened and t.at_s >= fault_s), None)
    before = phase(within(samples, 0.0, fault_s))
    usual = None if before.p95_ms is None else before.p95_ms / 1000 * slower + slack_s
    noticed = impaired_until(samples, fault_s, end_s, success=success)
    normal = impaired_until(
        samples, healed_s, end_s, success=success, p95_s=math.inf if usual is None else usual
    )
    return Report(
        total=phase(samples),
        before=before,
        during=phase(within(samples, fault_s, healed_s)),
        after=phase(within(samples, healed_s)),
        time_to_open_s=None if opened is None else opened - fault_s,
        after_opening=None if opened is None else phase(within(samples, opened)),
        time_to_close_s=_time_to_close(ordered, healed_s),
        mttr_s=None if noticed is None else noticed - fault_s,
        normal_after_s=None if normal is None else normal - healed_s,
        codes=dict(Counter(sample.code for sample in samples)),
        paths=dict(Counter(sample.path for sample in samples if sample.ok)),
    )


def _time_to_close(ordered: Sequence[Transition], healed_s: float) -> float | None:
    """From the healing until all that opened had closed: 0 if before it, None if one has not."""
    last = {transition.candidate: transition for transition in ordered}
    if not last or any(transition.opened for transition in last.values()):
        return None
    return max(0.0, max(transition.at_s for transition in last.values()) - healed_s)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None or math.isinf(seconds) else seconds * 1000
