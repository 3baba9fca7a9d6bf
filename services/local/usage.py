"""What a model's inferences take, from Triton's own counters, and what that costs. Pure.

Triton does not say what one request took. Its counters, read before and after, say what the
requests in between took on average; that average is what each of them is metered with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_QUICK_US = 20_000  # by Triton's clock: a busy machine takes several times as long


@dataclass(frozen=True, slots=True)
class Counters:
    """Triton's counts of a model since it was loaded.

    Attributes:
        requests: Requests that succeeded.
        rows: Rows of them; equals requests for models without a batch dimension.
        queue_ns: Time that those requests waited, summed over requests.
        compute_ns: Time that each request's batch took, summed over requests.
        busy_ns: Time that an instance was busy, summed over executions: the machine's time.
    """

    requests: int
    rows: int
    queue_ns: int
    compute_ns: int
    busy_ns: int


def total(each: Sequence[Counters]) -> Counters:
    """Return the sums over a model's replicas."""
    return Counters(
        sum(c.requests for c in each),
        sum(c.rows for c in each),
        sum(c.queue_ns for c in each),
        sum(c.compute_ns for c in each),
        sum(c.busy_ns for c in each),
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """Means over the latest inferences that Triton counted.

    Attributes:
        queue_us: A request's time in the queue.
        compute_us: A request's time of computation, its whole batch's.
        busy_ns_per_row: The machine's time for a row: the batch's, split among its rows.
    """

    queue_us: int
    compute_us: int
    busy_ns_per_row: float


class Meter:
    """Turns a model's counters into its usage."""

    def __init__(self) -> None:
        self._last: Counters | None = None
        self.usage: Usage | None = None

    @property
    def is_quick(self) -> bool:
        """Whether a request is known to be computed within milliseconds."""
        return self.usage is not None and self.usage.compute_us <= _QUICK_US

    @property
    def counters(self) -> Counters | None:
        """The latest counters."""
        return self._last

    def update(self, now: Counters) -> None:
        """Take the counters of this moment. Counters that went back start anew (a reload)."""
        before = self._last
        if before is None or now.requests < before.requests or now.rows < before.rows:
            requests, rows = now.requests, now.rows
            queue, compute, busy = now.queue_ns, now.compute_ns, now.busy_ns
        else:
            requests, rows = now.requests - before.requests, now.rows - before.rows
            queue, compute = now.queue_ns - before.queue_ns, now.compute_ns - before.compute_ns
            busy = now.busy_ns - before.busy_ns
        self._last = now
        if requests > 0 and rows > 0:
            self.usage = Usage(queue // requests // 1000, compute // requests // 1000, busy / rows)


@dataclass(frozen=True, slots=True)
class Price:
    """The machine's price in USD an hour, how many inferences it computes at once, its power.

    `watts` is what it takes under load, all slots together; 0: not known.
    """

    usd_per_hour: float
    slots: int
    watts: float = 0.0

    def usd(self, busy_s: float) -> float:
        """Return the price of so many seconds of one slot, in USD."""
        return self.usd_per_hour / 3600 / self.slots * busy_s

    def joules(self, busy_s: float) -> float:
        """Return the energy of so many seconds of one slot: an estimate, from a stated power."""
        return self.watts / self.slots * busy_s

    def nanos(self, usage: Usage, rows: int) -> int:
        """Return the cost of a request in billionths of a USD, at least 1 where there is a price.

        It is the price of the machine's time that the rows took: idle time is nobody's cost.
        """
        nanos_per_ns = self.usd_per_hour * 1e9 / 3.6e12 / self.slots
        return max(1, round(nanos_per_ns * usage.busy_ns_per_row * rows))
