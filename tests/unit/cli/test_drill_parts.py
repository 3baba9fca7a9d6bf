"""The drills' own judgement: what counts as restricted at the vendor, and when a target is met."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from services.cli.drill import mix
from services.cli.drill.run import Watch, starts_of
from services.cli.drill.scenes import DRILLS
from services.cli.drill.stats import Sample, report
from services.cli.drill.targets import Targets, judge
from twinpath.common.v1 import context_pb2, decision_pb2


def entry(change: float, model: str = "diabetes_large") -> dict[str, Any]:
    """A request as the stand-in vendor logs it, by the binary protocol."""
    head = b'{"inputs":[]}'
    features = [0.0] * 13
    features[10] = change
    return {
        "method": "POST",
        "path": f"/v2/models/{model}/versions/1/infer",
        "headers": {"Inference-Header-Content-Length": str(len(head))},
        "body_base64": base64.b64encode(head + struct.pack("<13f", *features)).decode(),
    }


def test_restricted_requests_are_told_by_what_arrived() -> None:
    """A mark in the input, or the restricted task's model, counts; ordinary requests do not."""
    assert mix.restricted_at_vendor([entry(0.0)]) == 0
    assert mix.restricted_at_vendor([entry(5.5), entry(0.0, "tumour_large"), entry(0.0)]) == 2
    assert mix.restricted_at_vendor([{**entry(0.0), "method": "GET"}]) == 0


def test_what_can_not_be_read_counts_as_restricted() -> None:
    """A body in another form does not hide behind it."""
    odd = {**entry(0.0), "headers": {}}
    assert mix.restricted_at_vendor([odd]) == 1


@pytest.mark.parametrize("question", [mix.usual, mix.overloading])
def test_restricted_requests_are_in_every_mix(question: Any) -> None:
    """Both kinds occur: a restricted task, and a request that its caller made restricted."""
    asked = [question(n).request for n in range(6000) if question(n).label == mix.RESTRICTED]
    assert len(asked) >= 100
    assert {request.task for request in asked} == {mix.DIABETES, mix.TUMOUR}
    restricted = context_pb2.DATA_CLASS_RESTRICTED
    assert all(r.data_class == restricted for r in asked if r.task == mix.DIABETES)


def test_the_whole_set_asks_a_thousand_restricted_requests() -> None:
    """At the usual rate and length there are at least so many."""
    assert sum(6000 // 10 for name in DRILLS if name != "overload") >= 1000


def samples(bad: int) -> list[Sample]:
    """A hundred requests, one each tenth of a second, of which the first ones failed."""
    return [
        Sample(intended_s=n / 10, ended_s=n / 10 + 0.01, ok=n >= bad, code="OK") for n in range(100)
    ]


def test_a_missed_target_is_missed() -> None:
    """Too many failures, a breaker that never opened, or one restricted request at the vendor."""
    targets = Targets(success=0.99, after_opening=0.999, open_s=1.0)
    found = report(samples(0), fault_s=2, healed_s=6, end_s=10)
    held = {check.name: check.held for check in judge(targets, found, 0)}
    assert held == {
        "success": True,
        "success after opening": False,
        "time to open": False,
        "restricted at the vendor": True,
    }
    worse = report(samples(2), fault_s=2, healed_s=6, end_s=10)
    assert [check.held for check in judge(Targets(success=0.99), worse, 1)] == [False, False]


def test_the_watch_reads_when_a_candidate_was_left_out() -> None:
    """Plans tell it, in the order of their requests, whatever the order of the replies."""
    watch = Watch("c")

    def plan(state: int) -> decision_pb2.Plan:
        made = decision_pb2.Plan()
        made.entries.add(
            candidate=decision_pb2.CandidateRef(id="c"),
            breaker=state,  # type: ignore[arg-type]
        )
        return made

    for at, state in ((3.0, 2), (1.0, 1), (2.0, 2), (4.0, 1)):
        watch.note(at, plan(state))
    assert [(t.at_s, t.opened) for t in watch.transitions()] == [(2.0, True), (4.0, False)]


def test_the_surge_lasts_as_long_as_the_fault() -> None:
    """Overload offers its multiple between one sixth and two thirds of the time."""
    starts = starts_of(DRILLS["overload"], 40.0, 60.0)
    during = [start for start in starts if 10 <= start < 40]
    assert len(during) == pytest.approx(30 * 150, abs=1)
    assert len(starts) - len(during) == pytest.approx(30 * 40, abs=1)
