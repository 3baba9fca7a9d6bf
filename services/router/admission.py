"""Who gets in: the adaptive limit on decisions in flight, by priority.

A refusal is immediate, says when to come back, and is a counter, not a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.chassis.clock import Clock
from services.chassis.errors import DeadlineExceededError, ResourceExhaustedError
from services.router import metrics
from services.router.decision import Decision
from services.router.limiter import Limiter, Outcome, Priority, Refusal
from services.router.spare import Spare
from twinpath.router.v1 import router_pb2


class Admission:
    """Holds the limit of this router."""

    def __init__(self, limiter: Limiter, clock: Clock, spare: Spare | None = None) -> None:
        """`spare` hears of every request that is more urgent than a batch."""
        self.limiter = limiter
        self._clock = clock
        self._spare = spare or Spare(clock)

    @contextmanager
    def __call__(self, request: router_pb2.InferRequest) -> Iterator[metrics.Seen]:
        """Hold a place while a request is decided, and learn from how long it took.

        Yields what counts it: its `decision` is to be set as soon as there is one.

        Raises:
            ResourceExhaustedError: there is no place for a request of its priority.
        """
        with metrics.request() as seen, self._place(request, seen):
            yield seen

    @contextmanager
    def _place(self, request: router_pb2.InferRequest, seen: metrics.Seen) -> Iterator[None]:
        priority = Priority(request.priority or Priority.NORMAL)
        if priority is not Priority.BATCH:
            self._spare.urgent()
        ticket = self.limiter.acquire(self._clock.monotonic(), priority, request.task)
        if isinstance(ticket, Refusal):
            raise ResourceExhaustedError(
                "OVERLOADED",
                f"{ticket.in_flight} decisions are in flight, the limit is {ticket.limit}",
                retry_after=ticket.retry_after_s,
            )
        outcome = Outcome.IGNORED  # what ends with another error says nothing about load
        try:
            yield
            outcome = Outcome.IGNORED if _says_nothing(seen.decision) else Outcome.DONE
        except DeadlineExceededError:
            outcome = Outcome.TIMED_OUT  # a caller in a hurry is not yet a sign of load
            raise
        except ResourceExhaustedError:
            outcome = Outcome.DROPPED
            raise
        finally:
            self.limiter.release(ticket, self._clock.monotonic(), outcome)


def _says_nothing(decision: Decision | None) -> bool:
    """Tell whether a decision's time says nothing about load.

    Time lost on a candidate that failed is the breaker's matter; and an answer that was kept, by
    the cache or the log, comes faster than any model without a queue: to learn from it would make
    every other answer look late.
    """
    return decision is not None and (decision.fallback or decision.cached or decision.repeated)
