"""The objective: who is tried first among those that may be tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.router.objective import CRITERIA, Measures, Objective, rank


def never() -> float:
    """No exploration."""
    return 1.0


def measures(
    name: str,
    preference: int = 1,
    latency: float | None = None,
    cost: int = 0,
    quality: float = 0.5,
    load: int = 0,
) -> Measures:
    """What is known of one candidate."""
    return Measures(name, preference, latency, cost, quality, load)


SOME = st.lists(
    st.builds(
        Measures,
        id=st.uuids().map(str),
        preference=st.integers(1, 9),
        latency=st.one_of(st.none(), st.floats(0, 10)),
        cost=st.integers(0, 10**9),
        quality=st.floats(0, 1),
        load=st.integers(0, 100),
    ),
    max_size=8,
    unique_by=lambda m: m.id,
)
OBJECTIVES = st.builds(
    Objective,
    order=st.lists(st.sampled_from(CRITERIA), min_size=1, max_size=5, unique=True).map(tuple),
    weights=st.dictionaries(st.sampled_from(CRITERIA), st.floats(0.01, 10), max_size=5),
    explore=st.sampled_from([0.0, 0.05]),
)


@given(OBJECTIVES, SOME, st.floats(0, 1))
def test_ranking_loses_and_invents_nobody(
    objective: Objective, candidates: list[Measures], random: float
) -> None:
    """Every candidate is ranked exactly once, whatever the objective and the dice."""
    ranked = rank(objective, candidates, lambda: random)
    assert sorted(name for name, _ in ranked) == sorted(c.id for c in candidates)


def test_the_first_criterion_decides_and_the_next_breaks_ties() -> None:
    """Lexicographic: cost first; equal costs are told apart by preference."""
    cheap, dear, same = (
        measures("cheap", 3, cost=1),
        measures("dear", 1, cost=9),
        measures("same", 2, cost=1),
    )
    ranked = rank(Objective(("cost", "preference")), [dear, cheap, same], never)
    assert [name for name, _ in ranked] == ["same", "cheap", "dear"]


def test_latencies_that_hardly_differ_are_equal() -> None:
    """Within a quarter, latency does not decide; beyond it does."""
    a, b = measures("a", 2, 0.0100), measures("b", 1, 0.0110)
    order = Objective(("latency", "preference"))
    assert [n for n, _ in rank(order, [a, b], never)] == ["b", "a"]
    far = measures("b", 1, 0.0300)
    assert [n for n, _ in rank(order, [a, far], never)] == ["a", "b"]


def test_weights_trade_latency_for_cost() -> None:
    """Weighted: a heavy weight on cost prefers the cheap one, a heavy one on latency the fast."""
    fast = measures("fast", latency=0.01, cost=1000)
    cheap = measures("cheap", latency=0.1, cost=10)
    by_cost = Objective(weights={"cost": 5, "latency": 1})
    by_time = Objective(weights={"cost": 1, "latency": 5})
    assert rank(by_cost, [fast, cheap], never)[0][0] == "cheap"
    assert rank(by_time, [fast, cheap], never)[0][0] == "fast"


def test_a_candidate_without_measurements_is_tried() -> None:
    """Not measured yet counts as the fastest, so that it gets measured."""
    known, new = measures("known", 1, 0.01), measures("new", 2)
    assert rank(Objective(("latency",)), [known, new], never)[0][0] == "new"


def test_exploration_is_rare_and_stays_among_the_candidates() -> None:
    """Exploration happens at the stated rate: below it the second goes first, above it never."""
    a, b = measures("a", 1, 0.01), measures("b", 2, 0.02)
    objective = Objective(explore=0.02)
    assert rank(objective, [a, b], lambda: 0.019)[0][0] == "b"
    assert rank(objective, [a, b], lambda: 0.021)[0][0] == "a"
