"""In which order the admitted candidates are tried. Pure.

A task's objective is either lexicographic (`order`: the first criterion decides, the next breaks
ties) or weighted (`weights`: a sum of terms, each scaled to 0..1 over the admitted candidates).
Lower is better for every criterion:

    preference   the place in the task's file
    latency      the predicted p50; a candidate not measured yet counts as the fastest, so that
                 it gets measured
    cost         the expected cost of one call
    quality      one minus the model card's quality
    load         calls in flight

Exploration: with the probability `explore`, the admitted candidate that was measured least goes
first. It is small and bounded, and never reaches a candidate that the plan refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

CRITERIA = ("preference", "latency", "cost", "quality", "load")
_LATENCY_STEP = 1.25  # lexicographic: latencies within 25 % of each other are equal


@dataclass(frozen=True, slots=True)
class Objective:
    """What a task wants. `weights` empty: lexicographic by `order`."""

    order: tuple[str, ...] = ("preference",)
    weights: Mapping[str, float] = field(default_factory=dict)
    explore: float = 0.0


@dataclass(frozen=True, slots=True)
class Measures:
    """What the criteria see of one candidate. Seconds, nano-dollars, 0..1, calls."""

    id: str
    preference: int
    latency: float | None
    cost: int
    quality: float
    load: int

    def value(self, criterion: str) -> float:
        """Return a criterion's raw value; lower is better."""
        if criterion == "latency":
            return self.latency or 0.0
        if criterion == "quality":
            return 1.0 - self.quality
        return float(getattr(self, criterion))


def _step(criterion: str, value: float, least: float) -> float:
    """Return a value as lexicographic comparison sees it: latencies in steps, not to the us."""
    if criterion != "latency" or value <= 0:
        return value
    steps = 0
    at = max(least, 1e-6)
    while at * _LATENCY_STEP < value and steps < 64:
        at *= _LATENCY_STEP
        steps += 1
    return float(steps)


def rank(
    objective: Objective, candidates: Sequence[Measures], random: Callable[[], float]
) -> list[tuple[str, float]]:
    """Return (id, score) of all candidates, best first; ties are broken by preference, then id."""
    if not candidates:
        return []
    if objective.weights:
        scored = _weighted(objective.weights, candidates)
    else:
        scored = _lexicographic(objective.order, candidates)
    if objective.explore and len(scored) > 1 and random() < objective.explore:
        unmeasured = {c.id: c.latency is not None for c in candidates}
        best = min(scored[1:], key=lambda item: unmeasured[item[0]])
        scored.remove(best)
        scored.insert(0, best)
    return scored


def _weighted(
    weights: Mapping[str, float], candidates: Sequence[Measures]
) -> list[tuple[str, float]]:
    scores = dict.fromkeys((c.id for c in candidates), 0.0)
    for criterion, weight in weights.items():
        values = {c.id: c.value(criterion) for c in candidates}
        greatest = max(values.values())
        if greatest > 0:
            for name, value in values.items():
                scores[name] += weight * value / greatest
    order = {c.id: (scores[c.id], c.preference, c.id) for c in candidates}
    return [(name, scores[name]) for name in sorted(order, key=lambda name: order[name])]


def _lexicographic(order: Sequence[str], candidates: Sequence[Measures]) -> list[tuple[str, float]]:
    if tuple(order) == ("preference",):
        plain = sorted(candidates, key=lambda c: (c.preference, c.id))
        return [(c.id, float(c.preference)) for c in plain]
    least = {n: min(c.value(n) for c in candidates) for n in order}

    def key(c: Measures) -> tuple[tuple[float, ...], int, str]:
        return tuple(_step(n, c.value(n), least[n]) for n in order), c.preference, c.id

    ranked = sorted(candidates, key=key)
    return [(c.id, float(place)) for place, c in enumerate(ranked, start=1)]
