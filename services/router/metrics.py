"""What Prometheus sees of decisions. Explained one by one in deploy/observability/metrics.md.

Labels are names of the catalog and reasons of our own, never a caller's text: what a caller
could make up would make series without end. A task is empty where the request was ended before
its task was found in the catalog; path and candidate are empty where nobody answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from services.chassis import telemetry
from services.chassis.errors import ServiceError
from services.router.decision import Decision
from services.router.limiter import Limiter
from twinpath.audit.v1 import record_pb2
from twinpath.common.v1 import decision_pb2

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_HOUR, _DAY = 3600.0, 86_400.0

DECISIONS = Counter(
    "twinpath_decisions_total",
    "Requests that were ended, by how: OK, REPEATED, CANCELLED, or the error's reason.",
    ("task", "path", "candidate", "reason"),
)
DURATION = Histogram(
    "twinpath_decision_duration_seconds",
    "From admission to reply, of all requests.",
    ("task", "path", "ok"),
    buckets=_SECONDS,
)
FALLBACKS = Counter(
    "twinpath_fallbacks_total", "Decisions that the first of the plan did not answer.", ("task",)
)
ATTEMPTS = Counter(
    "twinpath_attempts_total",
    "Calls of candidates, by kind and result: OK, CANCELLED, or the error's reason.",
    ("task", "path", "candidate", "kind", "reason"),
)
ATTEMPT_DURATION = Histogram(
    "twinpath_attempt_duration_seconds",
    "Time of an attempt, as the router measured it.",
    ("path", "candidate"),
    buckets=_SECONDS,
)
QUEUE = Histogram(
    "twinpath_attempt_queue_seconds",
    "Time that an attempt's item waited for its model, as the path reports it.",
    ("path", "candidate"),
    buckets=(0.0001, 0.0002, 0.0005, *_SECONDS[:10]),
)
FIRST_CHUNK = Histogram(
    "twinpath_first_chunk_seconds",
    "Time to a stream's first chunk.",
    ("path", "candidate"),
    buckets=_SECONDS,
)
CHUNK_GAP = Histogram(
    "twinpath_chunk_gap_seconds",
    "Time from one chunk of a stream to the next, as the router got them.",
    ("path", "candidate"),
    buckets=(0.0005, *_SECONDS),
)
COST = Counter(
    "twinpath_cost_nanos_total",
    "Cost of all attempts in billionths of a unit, the failed and hedged ones included.",
    ("task", "path", "candidate", "currency", "basis"),
)
JOB_ITEMS = Counter(
    "twinpath_job_items_total",
    "Items of batch jobs that got their result: OK, or the error's reason.",
    ("task", "candidate", "reason"),
)
JOBS_OPEN = Gauge("twinpath_jobs_open", "Batch jobs that have not ended, of all routers together.")
BATCH = Histogram(
    "twinpath_hop_batch_items",
    "Items in one coalesced call of a hop.",
    ("hop",),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
HOP_WAIT = Histogram(
    "twinpath_hop_wait_seconds",
    "How long the first item of a coalesced call waited for the call before it.",
    ("hop",),
    buckets=(0.0001, 0.0002, 0.0005, *_SECONDS[:10]),
)
APPEND = Histogram(
    "twinpath_audit_append_lag_seconds",
    "From handing over a record to knowing that it is durable, by the record's kind.",
    ("kind",),
    buckets=(0.0005, *_SECONDS),
)
FEATURE_AGE = Histogram(
    "twinpath_feature_age_seconds",
    "Age of a view's row when it was used: now less its event time.",
    ("view",),
    buckets=(1, 10, 60, 600, _HOUR, 6 * _HOUR, _DAY, 7 * _DAY, 30 * _DAY, 365 * _DAY),
)
FEATURES_HANDLED = Counter(
    "twinpath_features_handled_total",
    "Features that were stale or not there, and what was done about it.",
    ("task", "status", "action"),
)
FILTERED = Counter(
    "twinpath_filters_applied_total",
    "What tasks' filters found in inputs and outputs, by what was done about it and its kind.",
    ("task", "what", "kind"),
)

_KINDS = {
    value: name.removeprefix("ATTEMPT_KIND_").lower()
    for name, value in decision_pb2.AttemptKind.items()
}
_BASES = {
    value: name.removeprefix("COST_BASIS_").lower()
    for name, value in decision_pb2.CostBasis.items()
}
_RECORDS = {
    value: name.removeprefix("RECORD_KIND_").lower()
    for name, value in record_pb2.RecordKind.items()
}
_PATHS = {1: "local", 2: "remote"}


@lru_cache(maxsize=4096)
def _series(metric: Any, *labels: str) -> Any:
    """Return a metric's series: looking it up in the metric itself costs a lock and a tuple."""
    return metric.labels(*labels)


class Seen:
    """One request on its way. Whoever learns its decision sets it."""

    __slots__ = ("decision", "start")

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.decision: Decision | None = None


@contextmanager
def request() -> Iterator[Seen]:
    """Count and time a request, however it ends."""
    seen = Seen()
    reason = "CANCELLED"
    try:
        yield seen
        decision = seen.decision
        reason = "REPEATED" if decision is not None and decision.repeated else "OK"
    except ServiceError as error:
        reason = error.reason
        raise
    except Exception:
        reason = "INTERNAL"
        raise
    finally:
        _ended(seen, reason)


@contextmanager
def refusal() -> Iterator[None]:
    """Count a request that is refused here, before it is timed as a decision."""
    try:
        yield
    except ServiceError as error:
        _ended(Seen(), error.reason)
        raise


def _ended(seen: Seen, reason: str) -> None:
    seconds = time.perf_counter() - seen.start
    decision = seen.decision
    task = decision.task.name if decision is not None else ""
    by = decision.answered_by if decision is not None else None
    path, candidate = (by.path, by.id) if by is not None else ("", "")
    ok = reason in ("OK", "REPEATED")
    # A trace that failed is exported, whatever the ratio said (late_sampling.py).
    exemplar = telemetry.exemplar(also_unsampled=not ok)
    _series(DECISIONS, task, path, candidate, reason).inc(1, exemplar)
    _series(DURATION, task, path, "true" if ok else "false").observe(seconds, exemplar)
    if decision is None or decision.assembled is None:
        return
    if decision.fallback:
        _series(FALLBACKS, task).inc(1, exemplar)
    for handled in decision.assembled.handling:
        status = decision_pb2.FeatureStatus.Name(handled.status).removeprefix("FEATURE_STATUS_")
        action = decision_pb2.FeatureAction.Name(handled.action).removeprefix("FEATURE_ACTION_")
        _series(FEATURES_HANDLED, task, status.lower(), action.lower()).inc()
    for made in decision.filters_applied:  # `what:kind=count`, as the record has it
        what, _, found = made.partition(":")
        kind, _, count = found.partition("=")
        _series(FILTERED, task, what, kind).inc(int(count))


def attempted(task: str, attempt: decision_pb2.Attempt) -> None:
    """Count an attempt that has ended."""
    path, candidate = _PATHS.get(attempt.candidate.path, ""), attempt.candidate.id
    reason = "CANCELLED" if attempt.cancelled else attempt.reason or "OK"
    exemplar = telemetry.exemplar()
    _series(ATTEMPTS, task, path, candidate, _KINDS[attempt.kind], reason).inc(1, exemplar)
    if (
        attempt.kind != decision_pb2.ATTEMPT_KIND_BULK
    ):  # its time is the batch's, which may be a day
        _series(ATTEMPT_DURATION, path, candidate).observe(attempt.latency_us / 1e6, exemplar)
    if attempt.queue_us:
        _series(QUEUE, path, candidate).observe(attempt.queue_us / 1e6)
    if attempt.first_chunk_us:
        _series(FIRST_CHUNK, path, candidate).observe(attempt.first_chunk_us / 1e6)
    cost = attempt.cost
    if cost.nanos > 0:
        labels = (task, path, candidate, cost.currency_code, _BASES[cost.basis])
        _series(COST, *labels).inc(cost.nanos)


def job_item(task: str, candidate: str, reason: str) -> None:
    """Count an item of a batch job that got its result."""
    _series(JOB_ITEMS, task, candidate, reason).inc()


def chunk_gaps(path: str, candidate: str) -> Any:
    """Return what the time between two chunks of a stream is told to, in seconds."""
    return _series(CHUNK_GAP, path, candidate).observe


def batched(hop: str) -> Any:
    """Return what a hop's coalescer tells each batch's size and wait to."""
    sizes, waits = BATCH.labels(hop), HOP_WAIT.labels(hop)

    def observe(size: int, waited_s: float) -> None:
        sizes.observe(size)
        waits.observe(waited_s)

    return observe


@contextmanager
def appending(kind: int) -> Iterator[None]:
    """Time an append, however it ends: one that fails late is lag, too."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _series(APPEND, _RECORDS[kind]).observe(time.perf_counter() - start, telemetry.exemplar())


def enriched(views: Iterable[tuple[str, str, int]], now_us: int) -> None:
    """Note the age of every view's row; (name, version, event time in microseconds)."""
    for view, _, event_us in views:
        if event_us:
            _series(FEATURE_AGE, view).observe(max(0.0, (now_us - event_us) / 1e6))


class BreakerStates(Protocol):
    """What `RouterState` reads of the board."""

    def breakers(self) -> Iterable[tuple[str, str, str, int]]:
        """Return (path, model, version, state) of every candidate that was ever looked at."""


class RouterState:
    """What is so now, read when Prometheus asks: breakers and the limiter."""

    def __init__(self, board: BreakerStates, limiter: Limiter) -> None:
        self._board = board
        self._limiter = limiter

    @staticmethod
    def describe() -> list[Metric]:
        """Return the metrics without samples."""
        return [
            GaugeMetricFamily(
                "twinpath_breaker_state",
                "State of a model's circuit breaker: 1 closed, 2 open, 3 half open.",
                labels=("path", "model", "version"),
            ),
            GaugeMetricFamily("twinpath_limiter_limit", "Decisions that may be in flight now."),
            GaugeMetricFamily("twinpath_limiter_in_flight", "Decisions that are in flight now."),
        ]

    def collect(self) -> list[Metric]:
        """Return the metrics as of now. Called from the thread that serves /metrics."""
        breakers, limit, in_flight = found = self.describe()
        for path, model, version, state in self._board.breakers():
            breakers.add_sample(
                breakers.name, {"path": path, "model": model, "version": version}, state
            )
        limit.add_sample(limit.name, {}, self._limiter.limit)
        in_flight.add_sample(in_flight.name, {}, self._limiter.in_flight)
        return list(found)
