"""Triton's dynamic batching from a latency budget. Pure.

A candidate of the catalog may say `budget_ms`: what one inference may take, queue included. Then:

    max_queue_delay_microseconds = 1 % of the budget, at most 5,000
    preferred_batch_size         = a quarter of max_batch_size, and max_batch_size

A request waits for company no longer than that, and not at all once a preferred size is together.
One in a hundred of the budget is what waiting may cost when nobody comes; a quarter of the largest
batch is where most of what batching gains is gained. Without a budget the repository's own
configuration stands, which for our models is to wait for nobody: what has queued up goes together.
"""

from __future__ import annotations

from dataclasses import dataclass

_SHARE = 0.01
_MOST_US = 5_000


@dataclass(frozen=True, slots=True)
class Batching:
    """How long a request waits for company, in microseconds, and in what sizes batches go."""

    delay_us: int
    preferred: tuple[int, ...]


def derive(budget_ms: float, max_batch_size: int) -> Batching | None:
    """Return the batching for a budget; None: a model without batches, or nothing to wait with."""
    delay = min(int(budget_ms * 1000 * _SHARE), _MOST_US)
    if max_batch_size < 2 or delay < 1:
        return None
    return Batching(delay, tuple(sorted({max(2, max_batch_size // 4), max_batch_size})))
