"""The way of one request whose answer comes in chunks.

The same steps as in pipeline.py, with the differences that a stream makes: the INTENT is durable
before the first chunk; chunks are provisional; until the first chunk another candidate may take
over, afterwards nothing is tried again; the final message follows a durable OUTCOME. A stream
without a final message was cut, and its error says how far it came.

Generators are closed explicitly (aclosing): Python closes only the outermost by itself, and a
model must not go on for a reader that is gone.

Nothing is buffered but the answer itself, which is bounded: a reader that is slow slows the model
down, through gRPC's flow control on every hop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.errors import (
    AbortedError,
    FailedPreconditionError,
    ServiceError,
    UnavailableError,
)
from services.router.admission import Admission
from services.router.attempt import CONTENT_FILTERED, MIN_TIME_S, Answer, Attempter, Errand
from services.router.collected import Collected
from services.router.decision import Decision
from services.router.dispatch import verdict
from services.router.outputs import accept
from services.router.ports import Claims
from services.router.steps import Steps, size_class_of
from services.router.stream_filter import StreamFilter
from twinpath.common.v1 import decision_pb2
from twinpath.inference.v1 import inference_pb2
from twinpath.router.v1 import router_pb2

Message = router_pb2.InferStreamResponse


class Streams:
    """Makes decisions in chunks."""

    def __init__(
        self,
        *,
        steps: Steps,
        attempter: Attempter,
        admission: Admission,
        claims: Claims,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._steps = steps
        self._attempter = attempter
        self._admission = admission
        self._claims = claims
        self._clock = clock
        self._random = random

    async def decide(self, request: router_pb2.InferRequest, call: Call) -> AsyncGenerator[Message]:
        """Yield the chunks of one decision, then its final message.

        Raises:
            ServiceError: as Infer; and STREAM_CUT, when chunks were given and no end came.
        """
        with self._admission(request) as seen:
            seen.decision = decision = self._steps.admit(request, call, "")
            if not decision.task.streaming:
                message = f"the task {decision.task.name} does not stream; use Infer"
                raise FailedPreconditionError("NOT_STREAMING", message)
            if not request.idempotency_key:
                async with aclosing(self._make(decision)) as made:
                    async for part in made:
                        yield part
                return
            before = await self._steps.find(decision)
            if before is not None:
                yield Message(chunk=inference_pb2.InferChunk(outputs=before.outputs))
                yield Message(final=before)
                return
            if not await self._claims.take(
                decision.id, decision.deadline - self._clock.monotonic()
            ):
                text = "another copy of this stream is running; ask again for its answer"
                raise AbortedError("IDEMPOTENCY_IN_PROGRESS", text, retry_after=1.0)
            try:
                async with aclosing(self._make(decision)) as made:
                    async for part in made:
                        yield part
            finally:
                await self._claims.release(decision.id)

    async def _make(self, decision: Decision) -> AsyncGenerator[Message]:
        """Enrich, assemble, plan, dispatch, record."""
        await self._steps.enrich(decision)
        self._steps.assemble(decision)
        plan = self._steps.plan(decision)
        if not plan.admitted:
            raise await self._steps.refuse(decision, plan)
        await self._steps.intend(decision)
        answer, collected = Answer(), Collected()
        try:
            async with aclosing(self.dispatch(decision, answer, collected)) as chunks:
                async for chunk in chunks:
                    yield Message(chunk=chunk)
        except (GeneratorExit, asyncio.CancelledError):
            self._steps.left(decision, answer)
            raise
        if answer.error is not None:
            raise await self._steps.fail(decision, answer.error, answer)
        made = self._steps.reply(decision, answer)
        reply = await self._steps.record(decision, made)
        if reply.repeated and reply.outputs != made.outputs:
            # Another copy's OUTCOME came first, and other chunks than its were given here.
            text = "another copy of this request was recorded first, with another answer"
            raise AbortedError("STREAM_OVERTAKEN", text, retry_after=0.1)
        yield Message(final=reply)

    async def dispatch(
        self, decision: Decision, answer: Answer, collected: Collected
    ) -> AsyncGenerator[inference_pb2.InferChunk]:
        """Try the plan in order until a first chunk comes; then stay with that candidate.

        The decision's INTENT must be durable. `answer` has an output or an error in the end.
        """
        assert decision.plan is not None

        async def durable() -> None:
            """The INTENT is durable already."""

        errand = Errand(
            decision,
            accept=partial(accept, decision),
            intent_durable=durable,
            clock=self._clock,
            size_class=size_class_of(decision),
        )
        entries = decision.plan.admitted
        for place, entry in enumerate(entries):
            left = errand.left()
            if left < MIN_TIME_S:
                break
            last = place == len(entries) - 1
            first_chunk_s = left * (1.0 if last else decision.task.resilience.attempt_share)
            kind = (
                decision_pb2.ATTEMPT_KIND_FALLBACK
                if answer.attempts
                else decision_pb2.ATTEMPT_KIND_PRIMARY
            )
            held_back = StreamFilter.of(decision)
            given = False
            collected.clear()
            try:
                attempt = self._attempter.stream(errand, entry, kind, first_chunk_s, answer)
                async with aclosing(attempt) as chunks:
                    async for chunk in chunks:
                        collected.add(chunk)
                        passed = chunk if held_back is None else held_back.feed(chunk)
                        if passed is not None:
                            given = True
                            yield passed
                answer.outputs = errand.accept(collected.outputs())
                if held_back is not None:
                    rest = held_back.finish()
                    held_back.verify(answer.outputs)
                    if rest is not None:
                        given = True
                        yield rest
            except ServiceError as error:
                _judged(answer, error)
                if given:
                    answer.error = _cut(error, collected)
                    return
                if error.reason == CONTENT_FILTERED:
                    answer.error = error
                    return
                continue
            answer.candidate = entry.candidate
            answer.fallback = entry.rank > 1
            return
        answer.error = verdict(errand, answer, self._random)


def _judged(answer: Answer, error: ServiceError) -> None:
    """Note on an attempt that its path took for a good one why its output is none."""
    if answer.attempts and not answer.attempts[-1].reason:
        answer.attempts[-1].code = error.code.value[0]
        answer.attempts[-1].reason = error.reason


def _cut(error: ServiceError, collected: Collected) -> ServiceError:
    """Return the error for a stream that began and did not end; a vendor's refusal stays one."""
    if error.reason in (CONTENT_FILTERED, "OUTPUT_CONTRACT", "OUTPUT_POLICY"):
        return error
    return UnavailableError(
        "STREAM_CUT",
        f"the stream was cut after {collected.chunks} chunks: {error.message}",
        metadata={
            "chunks": str(collected.chunks),
            "bytes": str(collected.size),
            "cause": error.reason,
        },
    )
