"""The plan: who may be asked, in which order, and why not the others. Pure.

    plan(candidates, states, policy, facts, constraints) -> Plan

Policy comes first and is final: a candidate that it excludes gets no rank, whatever else is true
of it, and nothing later in a request can reach a candidate without a rank. The other reasons
(constraint, release, health, breaker, time) exclude for now. What is left is ordered by the
objective. Every reason that applies is kept, not only the first: people read plans.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.router.breaker import State as Breaker
from services.router.cutover import Criteria
from services.router.objective import Measures, Objective, rank
from services.router.policy import Policy

_BY_PREFERENCE = Objective()


class Kind(enum.IntEnum):
    """Groups of reasons; the numbers are those of RefusalKind in the contract."""

    POLICY = 1
    HEALTH = 2
    CONSTRAINT = 3
    TIME = 4
    RELEASE = 5
    BUDGET = 6


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model at one version on one path. `preference` is its place in the task's file.

    `facts` are what policy may read; `facts_key` is their content, because two tasks may use one
    id for candidates that differ.
    """

    id: str
    path: str
    model: str
    version: str
    provider: str
    region: str
    preference: int
    cost_nanos: int
    quality: float
    slow_after_s: float
    facts: Mapping[str, Any]
    facts_key: str = field(init=False)
    cutover: Criteria | None = None

    def __post_init__(self) -> None:
        """Derive the key."""
        object.__setattr__(self, "facts_key", repr(sorted(self.facts.items())))


@dataclass(frozen=True, slots=True)
class State:
    """What is known about a candidate at this moment. Times in seconds; None: not measured."""

    ready: bool
    reason: str = ""
    breaker: Breaker = Breaker.CLOSED
    admits: bool = True  # the breaker would let a call pass
    drained: bool = False
    p50: float | None = None
    p95: float | None = None
    in_flight: int = 0
    slow_start: bool = False  # it has come back, and no more calls of it may be in flight now
    cut_over: str = ""  # why it is tried after those that are not


@dataclass(frozen=True, slots=True)
class Arm:
    """What a split gives an entity: who may answer it, by id, with its preference from 1."""

    name: str
    places: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason against a candidate."""

    kind: Kind
    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What the plan says about one candidate. Rank 1 is tried first, 0 is refused."""

    candidate: Candidate
    state: State
    rank: int
    refusals: tuple[Refusal, ...] = ()
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Every candidate: admitted by rank, then refused by id."""

    entries: tuple[Entry, ...]
    policy_version: str
    data_class: int
    arm: str = ""  # of the task's split; empty: it has none
    rules: tuple[str, ...] = ()  # of policy, that counted: who is admitted passed all of them
    admitted: tuple[Entry, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Keep the admitted entries apart, in order."""
        object.__setattr__(self, "admitted", tuple(e for e in self.entries if e.rank))

    @property
    def refused_by_policy(self) -> bool:
        """True: nothing is admitted, and policy excluded at least one candidate."""
        return not self.admitted and any(
            r.kind is Kind.POLICY for e in self.entries for r in e.refusals
        )


def make_plan(
    candidates: Sequence[Candidate],
    states: Mapping[str, State],
    policy: Policy,
    facts: Mapping[str, Any],
    *,
    time_left: float,
    only_path: str = "",
    objective: Objective = _BY_PREFERENCE,
    arm: Arm | None = None,
    random: Callable[[], float] = lambda: 1.0,
) -> Plan:
    """Plan one request.

    `facts` are those of policy.REQUEST_FACTS, `time_left` is in seconds, `random` is uniform over
    0..1 and decides about exploration only. An `arm` takes away those whom it does not name.
    """
    admitted: dict[str, tuple[Candidate, State]] = {}
    refused: list[Entry] = []
    last_resort: dict[str, tuple[Candidate, State]] = {}
    denied = policy.all_denials(facts, [(c.facts, c.facts_key) for c in candidates])
    for candidate, denials in zip(candidates, denied, strict=True):
        state = states[candidate.id]
        reasons = [Refusal(Kind.POLICY, denial.rule, denial.message) for denial in denials]
        reasons += _circumstances(candidate, state, only_path, time_left)
        if arm is not None and candidate.id not in arm.places:
            message = f"arm {arm.name} gives it no traffic"
            reasons.append(Refusal(Kind.RELEASE, "not_in_arm", message))
        if _only_slow(reasons, state, time_left) or _only_starting(reasons):
            last_resort[candidate.id] = (candidate, state)
        if reasons:
            refused.append(Entry(candidate, state, 0, tuple(reasons)))
        else:
            admitted[candidate.id] = (candidate, state)
    if not admitted and last_resort:
        # Half of its answers would come in time, and nobody else is left. To refuse would also
        # end the measuring, so that it could not come back.
        admitted = last_resort
        refused = [entry for entry in refused if entry.candidate.id not in admitted]
    measures = [
        Measures(c.id, _place(c, arm), s.p50, c.cost_nanos, c.quality, s.in_flight)
        for c, s in admitted.values()
    ]
    order = rank(objective, measures, random)
    order.sort(key=lambda item: bool(admitted[item[0]][1].cut_over))  # else as they were
    ranked = [
        Entry(*admitted[name], place, (), score) for place, (name, score) in enumerate(order, 1)
    ]
    refused.sort(key=lambda entry: entry.candidate.id)
    name = arm.name if arm is not None else ""
    return Plan(
        (*ranked, *refused),
        policy.version,
        facts["data_class"],
        name,
        policy.ids(facts["task"]),
    )


def _place(candidate: Candidate, arm: Arm | None) -> int:
    """Return a candidate's preference: its place in its arm, else in the task's file."""
    return candidate.preference if arm is None else arm.places[candidate.id]


def _only_slow(reasons: Sequence[Refusal], state: State, time_left: float) -> bool:
    """Tell whether its slowest answers alone speak against a candidate, not its usual ones."""
    slow = bool(reasons) and all(reason.kind is Kind.TIME for reason in reasons)
    return slow and state.p50 is not None and state.p50 <= time_left


def _only_starting(reasons: Sequence[Refusal]) -> bool:
    """Tell whether a slow start alone speaks against a candidate: it spares, it does not refuse."""
    return bool(reasons) and all(reason.rule == "slow_start" for reason in reasons)


def _circumstances(
    candidate: Candidate, state: State, only_path: str, time_left: float
) -> list[Refusal]:
    """Return the reasons that are about this moment, not about policy."""
    reasons = []
    if only_path and candidate.path != only_path:
        message = f"the request asked for the {only_path} path only"
        reasons.append(Refusal(Kind.CONSTRAINT, "only_path", message))
    if state.drained:
        message = f"an operator drained the {candidate.path} path"
        reasons.append(Refusal(Kind.RELEASE, "drained", message))
    if not state.ready:
        reasons.append(Refusal(Kind.HEALTH, "not_ready", state.reason or "it is not ready"))
    elif not state.admits:
        reasons.append(Refusal(Kind.HEALTH, "breaker_open", "its last calls failed"))
    elif state.slow_start:
        message = "it has come back, and gets its traffic bit by bit"
        reasons.append(Refusal(Kind.HEALTH, "slow_start", message))
    if state.p95 is not None and state.p95 > time_left:
        message = f"it needs {state.p95 * 1e3:.0f} ms (p95), {time_left * 1e3:.0f} ms are left"
        reasons.append(Refusal(Kind.TIME, "too_slow", message))
    return reasons
