"""Tries a plan: one candidate after the other, until one gives an output that fits.

Only admitted entries of the plan are ever looked at; there is no other way to a candidate. Before
the first byte leaves for a vendor the INTENT is durable; on the local path its flush overlaps the
call and is awaited before the OUTCOME.
"""

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
_MIN_TIME_S = 0.001  # with less there is no point in a call


@dataclass(slots=True)
class Answer:
    """What came of a plan. `error` is set when nobody answered."""

    attempts: list[decision_pb2.Attempt] = field(default_factory=list)
    candidate: Candidate | None = None
    outputs: Sequence[tensor_pb2.Tensor] = ()
    finish_reason: inference_pb2.FinishReason = inference_pb2.FINISH_REASON_UNSPECIFIED
    fallback: bool = False
    error: ServiceError | None = None


Accept = Callable[[Sequence[tensor_pb2.Tensor]], Sequence[tensor_pb2.Tensor]]


class Dispatcher:
    """Tries plans over the paths."""

    def __init__(
        self, paths: Mapping[str, Inference], board: Board, signer: GrantSigner, clock: Clock
    ) -> None:
        self._paths = paths
        self._board = board
        self._signer = signer
        self._clock = clock

    async def run(
        self, decision: Decision, accept: Accept, intent_durable: Callable[[], Awaitable[None]]
    ) -> Answer:
        """Try the decision's plan in order.

        `accept` is the output filter; an output that it refuses is a failed attempt.
        `intent_durable` returns once the INTENT is on disk, and raises if it can't be.
        """
        assert decision.plan is not None
        answer = Answer()
        entries = decision.plan.admitted
        for place, entry in enumerate(entries):
            left = decision.deadline - self._clock.monotonic()
            if left < _MIN_TIME_S:
                break
            last = place == len(entries) - 1
            budget = left if last else left * decision.task.attempt_share
            if entry.candidate.path == "remote":
                await intent_durable()
            error = await self._attempt(decision, entry, budget, accept, answer)
            if error is None:
                answer.candidate = entry.candidate
                answer.fallback = place > 0
                return answer
            if error.reason == CONTENT_FILTERED:  # a vendor's refusal by content is final
                answer.error = error
                return answer
        answer.error = self._verdict(decision, answer)
        return answer

    async def _attempt(
        self, decision: Decision, entry: Entry, budget_s: float, accept: Accept, answer: Answer
    ) -> ServiceError | None:
        """Make one attempt, add it to the answer, and return why it failed."""
        candidate = entry.candidate
        first = not answer.attempts
        attempt = decision_pb2.Attempt(
            candidate=candidate_ref(candidate),
            kind=decision_pb2.ATTEMPT_KIND_PRIMARY if first else decision_pb2.ATTEMPT_KIND_FALLBACK,
            start_time_unix_us=self._clock.unix_us(),
        )
        answer.attempts.append(attempt)
        start = self._clock.monotonic()
        error: ServiceError | None = None
        with _tracer.start_as_current_span(names.SPAN_ATTEMPT) as span:
            span.set_attribute(names.CANDIDATE, candidate.id)
            span.set_attribute(names.PATH, candidate.path)
            span.set_attribute(names.ATTEMPT_KIND, decision_pb2.AttemptKind.Name(attempt.kind))
            try:
                item = self._item(decision, candidate, budget_s)
                result = await asyncio.wait_for(self._paths[candidate.path].infer(item), budget_s)
                _meter(attempt, result)
                error = from_status(result.status) if result.HasField("status") else None
                filtered = result.finish_reason == inference_pb2.FINISH_REASON_CONTENT_FILTER
                if filtered:
                    error = FailedPreconditionError(
                        CONTENT_FILTERED, "the vendor's content policy refused to answer"
                    )
                if error is None:
                    answer.outputs = accept(result.outputs)
                    answer.finish_reason = result.finish_reason
            except ServiceError as failure:
                error = failure
            except TimeoutError:
                error = DeadlineExceededError(
                    "ATTEMPT_TIMEOUT", f"no answer within {budget_s * 1e3:.0f} ms"
                )
            except asyncio.CancelledError:
                attempt.cancelled = True
                raise
            finally:
                attempt.latency_us = int((self._clock.monotonic() - start) * 1e6)
                if error is not None:
                    attempt.code = error.code.value[0]
                    attempt.reason = error.reason
                    span.set_status(trace.StatusCode.ERROR, error.reason)
        if error is not None:
            self._board.failed(candidate, error)
        return error

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

    def _verdict(self, decision: Decision, answer: Answer) -> ServiceError:
        """Return the error for a plan that nobody answered."""
        metadata = {a.candidate.id: a.reason for a in answer.attempts}
        if self._clock.monotonic() >= decision.deadline - _MIN_TIME_S:
            return DeadlineExceededError(
                "DEADLINE_EXCEEDED",
                f"the time ran out after {len(answer.attempts)} attempts",
                metadata=metadata,
            )
        tried = ", ".join(f"{name}: {reason}" for name, reason in metadata.items())
        return UnavailableError(
            "ALL_CANDIDATES_FAILED", f"no candidate answered ({tried})", metadata=metadata
        )


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
