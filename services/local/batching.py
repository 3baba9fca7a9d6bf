"""Triton's dynamic batching from a latency budget. Pure.

A candidate of the catalog may say `budget_ms`: what one inference may take, queue included. Then:

    max_queue_delay_microseconds = 1 % of the budget, at most 5,000; 0 for less than 100 ms
    preferred_batch_size         = a quarter of max_batch_size, and max_batch_size

A request waits for company no longer than that, and not at all once a preferred size is together.
One in a hundred of the budget is what waiting may cost when nobody comes. Where somebody waits for
each answer that is too much: a caller alone would pay it on every request, half a millisecond of 50
for an inference of half a millisecond, and what comes while a model is busy queues up and goes
together anyway. A quarter of the largest batch is where most of what batching gains is gained.
Without a budget the repository's own configuration stands.
"""

from __future__ import annotations

from dataclasses import dataclass

_SHARE = 0.01
_MOST_US = 5_000
_PATIENT_MS = 100.0  # from this budget on requests wait for company


@dataclass(frozen=True, slots=True)
class Batching:
    """How long a request waits for company, in microseconds, and in what sizes batches go."""

    delay_us: int
    preferred: tuple[int, ...]


def derive(budget_ms: float, max_batch_size: int) -> Batching | None:
    """Return the batching for a budget; None: a model without batches, or no budget."""
    if max_batch_size < 2 or budget_ms <= 0:
        return None
    delay = min(int(budget_ms * 1000 * _SHARE), _MOST_US) if budget_ms >= _PATIENT_MS else 0
    return Batching(delay, tuple(sorted({max(2, max_batch_size // 4), max_batch_size})))
