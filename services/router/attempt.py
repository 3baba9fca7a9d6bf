"""One attempt: one call of one candidate, permitted, timed, metered, traced, and judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry import trace

from services.chassis.clock import Clock
from services.chassis.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    ServiceError,
    UnavailableError,
    from_status,
)
from services.router.board import Board
from services.router.decision import Decision
from services.router.grants import GrantSigner
from services.router.plan import Candidate, Entry
from services.router.ports import Inference
from services.router.records import candidate_ref
from twinpath import telemetry as names
from twinpath.common.v1 import decision_pb2
from twinpath.inference.v1 import inference_pb2, tensor_pb2

_tracer = trace.get_tracer(__name__)

CONTENT_FILTERED = "CONTENT_FILTERED"
MIN_TIME_S = 0.001  # with less there is no point in a call

Outputs = Sequence[tensor_pb2.Tensor]


@dataclass(slots=True)
class Answer:
    """What came of a plan. `error` is set when nobody answered."""

    attempts: list[decision_pb2.Attempt] = field(default_factory=list)
    candidate: Candidate | None = None
    outputs: Outputs = ()
    finish_reason: inference_pb2.FinishReason = inference_pb2.FINISH_REASON_UNSPECIFIED
    fallback: bool = False
    error: ServiceError | None = None


@dataclass(slots=True)
class Errand:
    """A decision that is ready to be dispatched.

    `accept` is the output filter; an output that it refuses is a failed attempt. `intent_durable`
    returns once the INTENT is on disk, and raises if it can't be.
    """

    decision: Decision
    accept: Callable[[Outputs], Outputs]
    intent_durable: Callable[[], Awaitable[None]]
    clock: Clock
    size_class: int = 0

    def left(self) -> float:
        """Return the seconds left to the decision's deadline."""
        return self.decision.deadline - self.clock.monotonic()


class Attempter:
    """Makes attempts over the paths."""

    def __init__(
        self, paths: Mapping[str, Inference], board: Board, signer: GrantSigner, clock: Clock
    ) -> None:
        self._paths = paths
        self._board = board
        self._signer = signer
        self._clock = clock

    async def attempt(
        self,
        errand: Errand,
        entry: Entry,
        kind: decision_pb2.AttemptKind,
        budget_s: float,
        answer: Answer,
    ) -> ServiceError | None:
        """Make one attempt within `budget_s`. Fill the answer, or return why it failed."""
        candidate = entry.candidate
        if candidate.path == "remote":
            await errand.intent_durable()
        permit = self._board.begin(candidate)
        if permit is None:
            return UnavailableError("BREAKER_OPEN", f"{candidate.id} is not asked at the moment")
        if permit.probe:
            kind = decision_pb2.ATTEMPT_KIND_PROBE
        attempt = decision_pb2.Attempt(
            candidate=candidate_ref(candidate),
            kind=kind,
            start_time_unix_us=self._clock.unix_us(),
        )
        answer.attempts.append(attempt)
        start = self._clock.monotonic()
        error: ServiceError | None = None
        try:
            with _tracer.start_as_current_span(names.SPAN_ATTEMPT) as span:
                span.set_attribute(names.CANDIDATE, candidate.id)
                span.set_attribute(names.PATH, candidate.path)
                span.set_attribute(names.ATTEMPT_KIND, decision_pb2.AttemptKind.Name(kind))
                error = await self._ask(errand, candidate, attempt, budget_s, answer)
                if error is not None:
                    span.set_status(trace.StatusCode.ERROR, error.reason)
        except asyncio.CancelledError:
            attempt.cancelled = True
            attempt.latency_us = int((self._clock.monotonic() - start) * 1e6)
            _estimate_cost(attempt, candidate)
            self._board.abandon(candidate, permit)
            raise
        seconds = self._clock.monotonic() - start
        attempt.latency_us = int(seconds * 1e6)
        if error is not None:
            attempt.code = error.code.value[0]
            attempt.reason = error.reason
        else:
            answer.candidate = candidate
            answer.fallback = entry.rank > 1
        self._board.end(
            candidate,
            permit,
            seconds=seconds,
            size_class=errand.size_class,
            error=error,
            slow_after_s=entry.candidate.slow_after_s,
        )
        return error

    async def _ask(
        self,
        errand: Errand,
        candidate: Candidate,
        attempt: decision_pb2.Attempt,
        budget_s: float,
        answer: Answer,
    ) -> ServiceError | None:
        item = self._item(errand.decision, candidate, budget_s)
        try:
            result = await asyncio.wait_for(self._paths[candidate.path].infer(item), budget_s)
        except ServiceError as failed:
            return failed
        except TimeoutError:
            _estimate_cost(attempt, candidate)
            message = f"no answer within {budget_s * 1e3:.0f} ms"
            return DeadlineExceededError("ATTEMPT_TIMEOUT", message)
        _meter(attempt, result)
        error = from_status(result.status) if result.HasField("status") else None
        if result.finish_reason == inference_pb2.FINISH_REASON_CONTENT_FILTER:
            message = "the vendor's content policy refused to answer"
            error = FailedPreconditionError(CONTENT_FILTERED, message)
        if error is not None:
            return error
        try:
            outputs = errand.accept(result.outputs)
        except ServiceError as refused:
            return refused
        answer.outputs = outputs
        answer.finish_reason = result.finish_reason
        return None

    def _item(
        self, decision: Decision, candidate: Candidate, budget_s: float
    ) -> inference_pb2.InferItem:
        assert decision.assembled is not None
        context = decision.context(self._clock.monotonic())
        context.time_left_us = max(1, int(budget_s * 1e6))
        item = inference_pb2.InferItem(
            context=context,
            model=candidate.model,
            version=candidate.version,
            provider=candidate.provider,
            input=decision.assembled.model_input,
            decision_id=decision.id,
        )
        if candidate.path == "remote":
            item.grant.CopyFrom(self._signer.sign(decision, candidate, budget_s))
        return item


def _estimate_cost(attempt: decision_pb2.Attempt, candidate: Candidate) -> None:
    """Count a call that was cut off at its expected cost: a vendor may bill for it."""
    if candidate.cost_nanos:
        attempt.cost.currency_code = "USD"
        attempt.cost.nanos = candidate.cost_nanos
        attempt.cost.basis = decision_pb2.COST_BASIS_ESTIMATED


def _meter(attempt: decision_pb2.Attempt, result: inference_pb2.InferResult) -> None:
    """Copy what the path measured into the attempt; failed results are metered too."""
    metering = result.metering
    attempt.bytes_out = metering.bytes_out
    attempt.bytes_in = metering.bytes_in
    attempt.wire_digest = metering.wire_digest
    attempt.renderer_version = metering.renderer_version
    attempt.reported_version = metering.reported_version
    attempt.artifact_digest = metering.artifact_digest
    attempt.queue_us = metering.queue_us
    attempt.compute_us = metering.compute_us
    attempt.first_chunk_us = metering.first_chunk_us
    attempt.input_tokens = metering.input_tokens
    attempt.output_tokens = metering.output_tokens
    if metering.HasField("cost"):
        attempt.cost.CopyFrom(metering.cost)
