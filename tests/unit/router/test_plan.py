"""The plan: policy is final, every reason is kept, and what is left is in the task's order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.router.breaker import State as Breaker
from services.router.catalog import load_catalog
from services.router.plan import Candidate, Kind, State, make_plan
from tests.unit.router.ports import CATALOG

POLICY = load_catalog(CATALOG).policy
PATHS = st.sampled_from(["local", "remote"])


def candidate(
    name: str, path: str, preference: int = 1, approvals: tuple[str, ...] = ()
) -> Candidate:
    """A candidate; remote ones are at a vendor in the eu."""
    provider, region = ("standin", "eu") if path == "remote" else ("", "")
    facts = {
        "id": name,
        "path": path,
        "model": name,
        "version": "1",
        "provider": provider,
        "region": region,
        "approvals": list(approvals),
    }
    return Candidate(name, path, name, "1", provider, region, preference, 0, 0.5, 1.0, facts)


def facts(data_class: int = 2, **more: object) -> dict[str, object]:
    """Request facts with defaults."""
    base: dict[str, object] = {
        "data_class": data_class,
        "task": "diabetes_progression",
        "tenant": "",
        "caller": "alice",
        "purpose": "",
        "residency": "",
        "consents": (),
        "priority": "normal",
    }
    return {**base, **more}


STATES = st.builds(
    State,
    ready=st.booleans(),
    breaker=st.sampled_from(list(Breaker)),
    admits=st.booleans(),
    drained=st.booleans(),
    p95=st.one_of(st.none(), st.floats(0, 10)),
)


@given(
    paths=st.lists(PATHS, min_size=1, max_size=6),
    states=st.lists(STATES, min_size=6, max_size=6),
    data_class=st.integers(1, 4),
    only=st.sampled_from(["", "local", "remote"]),
    left=st.floats(0, 5),
)
def test_restricted_data_never_has_a_remote_candidate(
    paths: list[str], states: list[State], data_class: int, only: str, left: float
) -> None:
    """Whatever the states, no plan for restricted data admits the remote path."""
    candidates = [candidate(f"c{i}", path, i) for i, path in enumerate(paths)]
    by_id = {c.id: s for c, s in zip(candidates, states, strict=False)}
    plan = make_plan(candidates, by_id, POLICY, facts(data_class), only_path=only, time_left=left)
    assert len(plan.entries) == len(candidates)
    for entry in plan.entries:
        assert bool(entry.rank) != bool(entry.refusals)
        if data_class == 4 and entry.candidate.path == "remote":
            assert entry.rank == 0
            assert any(r.rule == "restricted_never_leaves" for r in entry.refusals)
    assert [e.rank for e in plan.admitted] == list(range(1, len(plan.admitted) + 1))


def test_the_tasks_order_decides_among_the_healthy() -> None:
    """Admitted candidates stand in the task's order of preference."""
    candidates = [candidate("b", "local", 2), candidate("a", "remote", 1)]
    ready = {c.id: State(ready=True) for c in candidates}
    plan = make_plan(candidates, ready, POLICY, facts(), time_left=1.0)
    assert [e.candidate.id for e in plan.admitted] == ["a", "b"]


def test_every_reason_is_kept() -> None:
    """A candidate that fails on several grounds shows all of them."""
    away = State(ready=False, reason="gone", drained=True, p95=9.0)
    only = candidate("a", "remote")
    plan = make_plan([only], {"a": away}, POLICY, facts(4), only_path="local", time_left=1.0)
    kinds = {r.kind for r in plan.entries[0].refusals}
    assert kinds == {Kind.POLICY, Kind.CONSTRAINT, Kind.RELEASE, Kind.HEALTH, Kind.TIME}
    assert plan.refused_by_policy


def test_an_open_breaker_excludes_and_is_no_refusal_by_policy() -> None:
    """A candidate whose breaker is open gets no rank, and the request is not REFUSED for it."""
    only = candidate("a", "local")
    state = State(ready=True, breaker=Breaker.OPEN, admits=False)
    plan = make_plan([only], {"a": state}, POLICY, facts(), time_left=1.0)
    assert not plan.admitted
    assert plan.entries[0].refusals[0].rule == "breaker_open"
    assert not plan.refused_by_policy


def test_a_candidate_that_needs_more_time_than_is_left_is_excluded() -> None:
    """The predicted p95 has to fit the time that is left."""
    only = candidate("a", "local")
    slow = {"a": State(ready=True, p95=0.2)}
    assert not make_plan([only], slow, POLICY, facts(), time_left=0.1).admitted
    assert make_plan([only], slow, POLICY, facts(), time_left=0.3).admitted


def test_confidential_data_needs_an_approved_vendor_and_the_demanded_region() -> None:
    """The base policy's other rules hold: approval for confidential data, residency."""
    ready = {"a": State(ready=True)}
    plain, approved = (
        candidate("a", "remote"),
        candidate("a", "remote", approvals=("confidential",)),
    )

    def admitted(who: Candidate, what: dict[str, object]) -> bool:
        return bool(make_plan([who], ready, POLICY, what, time_left=1.0).admitted)

    assert not admitted(plain, facts(3))
    assert admitted(approved, facts(3))
    assert not admitted(plain, facts(2, residency="us"))
    assert admitted(plain, facts(2, residency="eu"))


def planned(first: State, second: State) -> list[str]:
    """The order in which candidates a and b, both local, would be asked with a second left."""
    both = (candidate("a", "local", 1), candidate("b", "local", 2))
    states = {"a": first, "b": second}
    plan = make_plan(both, states, POLICY, facts(), time_left=1.0)
    return [entry.candidate.id for entry in plan.admitted]


def test_the_slow_one_is_asked_when_nobody_else_is_left() -> None:
    """A p95 that does not fit excludes, unless it is the only reason against the only candidate."""
    slow = State(ready=True, p50=0.05, p95=2.0)
    hopeless = State(ready=True, p50=1.5, p95=2.0)
    down = State(ready=False, p50=0.05, p95=2.0)
    fast = State(ready=True, p50=0.01, p95=0.02)
    assert planned(slow, fast) == ["b"]
    assert planned(slow, down) == ["a"]
    assert planned(hopeless, down) == []
