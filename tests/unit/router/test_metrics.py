"""What is counted of a decision, and that every metric is explained."""

from __future__ import annotations

import asyncio
import importlib
import re
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.exposition import generate_latest

from services.chassis.errors import NotFoundError, ResourceExhaustedError
from services.chassis.metrics import shown
from services.local.metrics import TritonCounters
from services.local.usage import Price
from services.router import metrics
from services.router.limiter import Limiter
from tests.support import ROOT
from twinpath.common.v1 import context_pb2, decision_pb2

PAGE = ROOT / "deploy" / "observability" / "metrics.md"
MAKES = re.compile(r"\b(Counter|Gauge|Histogram|Summary)\(\s*\n?\s*\"twinpath_", re.MULTILINE)


def value(name: str, **labels: str) -> float:
    """A sample now; 0 where there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def decision(**more: Any) -> Any:
    """As much of a decision as is looked at."""
    facts = {
        "task": SimpleNamespace(name="tried"),
        "answered_by": SimpleNamespace(path="local", id="small"),
        "fallback": False,
        "repeated": False,
        "assembled": SimpleNamespace(handling=[]),
        "filters_applied": (),
    }
    return SimpleNamespace(**{**facts, **more})


def test_every_metric_is_on_the_page_and_nothing_else() -> None:
    """A metric that nobody explains, and an explanation of none, are both mistakes."""
    for file in sorted((ROOT / "services").rglob("*.py")):
        if MAKES.search(file.read_text(encoding="utf-8")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            importlib.import_module(module)
    triton = TritonCounters(list, Price(usd_per_hour=1.0, slots=1, watts=1.0))
    families = [*REGISTRY.collect(), *metrics.RouterState.describe(), *triton.describe()]
    made = {
        f.name + ("_total" if f.type == "counter" else "")
        for f in families
        if f.name.startswith("twinpath_")
    }
    rows = re.findall(r"^\| `(twinpath_\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert made - set(rows) == set(), "not on the page"
    assert set(rows) - made == set(), "on the page, and not made"


def test_a_decision_is_counted_once_by_task_path_candidate_and_reason() -> None:
    """OK with who answered; a repeated answer is told apart."""
    ok = {"task": "tried", "path": "local", "candidate": "small", "reason": "OK"}
    again = {"task": "tried", "path": "", "candidate": "", "reason": "REPEATED"}
    before = value("twinpath_decisions_total", **ok), value("twinpath_decisions_total", **again)
    with metrics.request() as seen:
        seen.decision = decision()
    with metrics.request() as seen:
        seen.decision = decision(answered_by=None, repeated=True, assembled=None)
    assert value("twinpath_decisions_total", **ok) == before[0] + 1
    assert value("twinpath_decisions_total", **again) == before[1] + 1
    durations = {"task": "tried", "path": "local", "ok": "true"}
    assert value("twinpath_decision_duration_seconds_count", **durations) >= 1


def test_a_request_of_an_unknown_task_makes_no_series_of_its_own() -> None:
    """What a caller makes up is no label."""
    labels = {"task": "", "path": "", "candidate": "", "reason": "TASK_UNKNOWN"}
    before = value("twinpath_decisions_total", **labels)
    with pytest.raises(NotFoundError), metrics.request():
        raise NotFoundError("TASK_UNKNOWN", "there is no task 'made_up_by_a_caller'")
    assert value("twinpath_decisions_total", **labels) == before + 1
    assert b"made_up" not in generate_latest(REGISTRY)


def test_a_caller_that_left_is_cancelled() -> None:
    """It is counted, though nobody hears the answer."""
    labels = {"task": "tried", "path": "", "candidate": "", "reason": "CANCELLED"}
    before = value("twinpath_decisions_total", **labels)

    def leave() -> None:
        with metrics.request() as seen:
            seen.decision = decision(answered_by=None)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        leave()
    assert value("twinpath_decisions_total", **labels) == before + 1


def test_an_attempt_is_counted_with_kind_result_queue_and_cost() -> None:
    """Every attempt is metered, the failed and the cancelled ones too."""

    def attempt(**more: Any) -> decision_pb2.Attempt:
        candidate = decision_pb2.CandidateRef(id="c1", path=context_pb2.PATH_REMOTE)
        made = decision_pb2.Attempt(
            candidate=candidate, kind=decision_pb2.ATTEMPT_KIND_HEDGE, queue_us=5, **more
        )
        made.cost.currency_code = "USD"
        made.cost.nanos = 250
        made.cost.basis = decision_pb2.COST_BASIS_ESTIMATED
        return made

    metrics.attempted("tried", attempt(latency_us=1000))
    metrics.attempted("tried", attempt(latency_us=1000, code=14, reason="VENDOR_UNAVAILABLE"))
    metrics.attempted("tried", attempt(latency_us=1000, cancelled=True))
    labels = {"task": "tried", "path": "remote", "candidate": "c1", "kind": "hedge"}
    for reason in ("OK", "VENDOR_UNAVAILABLE", "CANCELLED"):
        assert value("twinpath_attempts_total", **labels, reason=reason) == 1
    place = {"path": "remote", "candidate": "c1"}
    assert value("twinpath_attempt_duration_seconds_count", **place) == 3
    assert value("twinpath_attempt_queue_seconds_count", **place) == 3
    cost = {"task": "tried", **place, "currency": "USD", "basis": "estimated"}
    assert value("twinpath_cost_nanos_total", **cost) == 750


def test_handled_features_and_ages_are_measured() -> None:
    """Stale features are counted with what was done; a view's age is now less its event time."""
    handled = decision_pb2.FeatureHandling(
        feature="v__f",
        status=decision_pb2.FEATURE_STATUS_STALE,
        action=decision_pb2.FEATURE_ACTION_ACCEPTED_STALE,
    )
    with metrics.request() as seen:
        seen.decision = decision(assembled=SimpleNamespace(handling=[handled]), fallback=True)
    labels = {"task": "tried", "status": "stale", "action": "accepted_stale"}
    assert value("twinpath_features_handled_total", **labels) == 1
    assert value("twinpath_fallbacks_total", task="tried") == 1
    metrics.enriched([("aged", "h", 1_000_000), ("timeless", "h", 0)], 61_000_000)
    assert value("twinpath_feature_age_seconds_sum", view="aged") == 60
    assert value("twinpath_feature_age_seconds_count", view="timeless") == 0


def test_what_filters_found_is_counted_by_what_was_done() -> None:
    """As often as the record says, also of a request that failed for it."""

    def refuse() -> None:
        with metrics.request() as seen:
            seen.decision = decision(
                task=SimpleNamespace(name="filtered"),
                filters_applied=("redacted:email=2", "refused:card=1"),
            )
            raise NotFoundError("OUTPUT_POLICY", "it holds a card")

    with pytest.raises(NotFoundError):
        refuse()
    found = {"task": "filtered", "what": "redacted", "kind": "email"}
    assert value("twinpath_filters_applied_total", **found) == 2
    found = {"task": "filtered", "what": "refused", "kind": "card"}
    assert value("twinpath_filters_applied_total", **found) == 1


def test_breakers_and_the_limiter_are_read_when_asked_for() -> None:
    """Gauges show what is so at the scrape, and are gone with their router."""

    class Board:
        """One open breaker."""

        def breakers(self) -> list[tuple[str, str, str, int]]:
            return [("remote", "m", "1", 2)]

    labels = {"path": "remote", "model": "m", "version": "1"}
    with shown(metrics.RouterState(Board(), Limiter())):
        assert value("twinpath_breaker_state", **labels) == 2
        assert value("twinpath_limiter_limit") > 0
        with shown(metrics.RouterState(Board(), Limiter())):  # a second router in one process
            assert value("twinpath_breaker_state", **labels) == 2
    assert value("twinpath_limiter_limit") == 0


def test_exemplars_name_traces_that_can_be_found() -> None:
    """A sampled trace's id is an exemplar; an unsampled one's only where it is kept for failing."""
    from opentelemetry import context, trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    from services.chassis import telemetry

    for flags, plain, failed in ((1, True, True), (0, False, True)):
        span = SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(flags))
        token = context.attach(trace.set_span_in_context(NonRecordingSpan(span)))
        try:
            assert (telemetry.exemplar() is not None) is plain
            assert (telemetry.exemplar(also_unsampled=True) is not None) is failed
        finally:
            context.detach(token)
    assert telemetry.exemplar(also_unsampled=True) is None


def test_a_refusal_before_the_decision_is_counted() -> None:
    """A quota's refusal is a decision that was ended, with its reason."""
    labels = {"task": "", "path": "", "candidate": "", "reason": "QUOTA_EXCEEDED"}
    before = value("twinpath_decisions_total", **labels)
    with pytest.raises(ResourceExhaustedError), metrics.refusal():
        raise ResourceExhaustedError("QUOTA_EXCEEDED", "too many")
    assert value("twinpath_decisions_total", **labels) == before + 1
    with metrics.refusal():
        pass
    assert value("twinpath_decisions_total", **labels) == before + 1
