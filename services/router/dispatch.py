"""Tries a plan: one candidate after the other, until one gives an output that fits.

Only admitted entries of the plan are ever looked at; there is no other way to a candidate, not
for a retry, not for a hedge, not for a fallback. Before the first byte leaves for a vendor the
INTENT is durable; on the local path its flush overlaps the call and is awaited before the OUTCOME.

    run       the order: hedge the first two, or one after the other, each with its retries
    _race     two candidates, the second started when the first is slow; the loser is cancelled
    _persist  one candidate and its retries
    attempt.py has the single attempt
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.chassis.clock import Clock
from services.chassis.errors import DeadlineExceededError, ServiceError, UnavailableError
from services.router.attempt import CONTENT_FILTERED, MIN_TIME_S, Answer, Attempter, Errand
from services.router.backoff import BackoffConfig, retry_delay
from services.router.board import Board, is_infrastructure
from services.router.plan import Entry
from twinpath.common.v1 import decision_pb2

_BACKOFF = BackoffConfig()


class Dispatcher:
    """Tries plans."""

    def __init__(
        self, attempter: Attempter, board: Board, clock: Clock, random: Callable[[], float]
    ) -> None:
        self._attempter = attempter
        self._board = board
        self._clock = clock
        self._random = random

    async def run(self, errand: Errand, answer: Answer | None = None) -> Answer:
        """Try the plan of an errand's decision. The answer has an output or an error in the end.

        Whoever gives the answer to fill finds the attempts in it, also when this is cancelled.
        """
        answer = Answer() if answer is None else answer
        decision = errand.decision
        assert decision.plan is not None
        entries = list(decision.plan.admitted)
        share = decision.task.resilience.attempt_share
        while entries and errand.left() >= MIN_TIME_S:
            entry = entries.pop(0)
            budget = errand.left() * (share if entries else 1.0)
            delay = self._hedge_delay(errand, entry, entries, answer)
            if delay is not None:
                error = await self._race(errand, entry, entries.pop(0), delay, answer)
            else:
                # Where somebody else is left to ask, that is the better second try.
                retries = 0 if entries else decision.task.resilience.retries
                error = await self._persist(errand, entry, budget, retries, answer)
            if error is None:
                return answer
            if error.reason == CONTENT_FILTERED:  # a vendor's refusal by content is final
                answer.error = error
                return answer
        answer.error = verdict(errand, answer, self._random)
        return answer

    # ---- one candidate and its retries ------------------------------------------------------

    async def _persist(
        self, errand: Errand, entry: Entry, budget_s: float, retries: int, answer: Answer
    ) -> ServiceError | None:
        until = self._clock.monotonic() + budget_s
        gauge = self._board.gauge(entry.candidate)
        gauge.budget.deposit(self._clock.monotonic())
        kind = (
            decision_pb2.ATTEMPT_KIND_FALLBACK
            if answer.attempts
            else decision_pb2.ATTEMPT_KIND_PRIMARY
        )
        error = await self._attempter.attempt(errand, entry, kind, budget_s, answer)
        for retry in range(retries):
            if error is None or not _retryable(error):
                return error
            delay = retry_delay(
                _BACKOFF,
                retry,
                self._random,
                time_left_s=until - self._clock.monotonic(),
                needed_s=entry.state.p50 or 0.0,
                pushback_s=error.retry_after,
            )
            if delay is None or not gauge.budget.withdraw(self._clock.monotonic()):
                return error
            await asyncio.sleep(delay)
            left = until - self._clock.monotonic()
            kind = decision_pb2.ATTEMPT_KIND_RETRY
            error = await self._attempter.attempt(errand, entry, kind, left, answer)
        return error

    # ---- two candidates at once -------------------------------------------------------------

    def _hedge_delay(
        self, errand: Errand, entry: Entry, others: list[Entry], answer: Answer
    ) -> float | None:
        """Return after how long to ask the next candidate too; None: don't."""
        if not (errand.decision.task.resilience.hedge and others) or answer.attempts:
            return None
        return self._board.gauge(entry.candidate).estimator.hedge_delay(
            self._clock.monotonic(),
            errand.size_class,
            time_left_s=errand.left(),
            other_p50_s=others[0].state.p50,
        )

    async def _race(
        self, errand: Errand, first: Entry, second: Entry, delay_s: float, answer: Answer
    ) -> ServiceError | None:
        """Ask `first`, and after `delay_s` of silence `second`; the first good answer wins."""
        self._board.gauge(first.candidate).budget.deposit(self._clock.monotonic())

        def ask(entry: Entry, kind: decision_pb2.AttemptKind) -> asyncio.Task[ServiceError | None]:
            attempt = self._attempter.attempt(errand, entry, kind, errand.left(), answer)
            return asyncio.ensure_future(attempt)

        running = {ask(first, decision_pb2.ATTEMPT_KIND_PRIMARY)}
        asked_second = False
        error: ServiceError | None = None
        try:
            done, _ = await asyncio.wait(running, timeout=delay_s)
            while True:
                for task in done:
                    running.discard(task)
                    error = task.result()
                    if error is None or error.reason == CONTENT_FILTERED:
                        return error
                if not asked_second:
                    asked_second = True
                    kind = decision_pb2.ATTEMPT_KIND_FALLBACK
                    if running:  # the first is slow, not failed: an extra call, and it is budgeted
                        budget = self._board.gauge(second.candidate).budget
                        kind = decision_pb2.ATTEMPT_KIND_HEDGE
                        if not budget.withdraw(self._clock.monotonic()):
                            done, _ = await asyncio.wait(running)
                            asked_second = False
                            continue
                    running.add(ask(second, kind))
                if not running:
                    return error
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _retryable(error: ServiceError) -> bool:
    """Tell whether the same candidate may do better in a moment."""
    return is_infrastructure(error) and error.reason not in {
        "ATTEMPT_TIMEOUT",
        "BREAKER_OPEN",
        "OUTPUT_CONTRACT",
        "OUTPUT_POLICY",
        "PATH_UNREACHABLE",
    }


def verdict(errand: Errand, answer: Answer, random: Callable[[], float]) -> ServiceError:
    """Return the error for a plan that nobody answered; when to come back differs by caller."""
    metadata = {a.candidate.id: a.reason for a in answer.attempts}
    if errand.left() < MIN_TIME_S:
        return DeadlineExceededError(
            "DEADLINE_EXCEEDED",
            f"the time ran out after {len(answer.attempts)} attempts",
            metadata=metadata,
        )
    tried = ", ".join(f"{name}: {reason}" for name, reason in metadata.items())
    return UnavailableError(
        "ALL_CANDIDATES_FAILED",
        f"no candidate answered ({tried or 'none could be asked'})",
        metadata=metadata,
        retry_after=0.5 + random(),
    )
