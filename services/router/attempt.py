"""One attempt: one call of one candidate, permitted, timed, metered, traced, and judged."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from opentelemetry import trace

from services.chassis import telemetry
from services.chassis.clock import Clock
from services.chassis.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    ServiceError,
    UnavailableError,
    from_status,
)
from services.router import metrics
from services.router.board import Board
from services.router.breaker import Permit
from services.router.cache import Place, ResponseCache
from services.router.collected import collect
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
_STREAMS_ONLY = "MODEL_STREAMS"  # what a path says of a model that has no unary answer
_KEEPING_S = 0.06  # an attempt has a time-out of its own; this is for the keeping after it
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
    cached: bool = False
    error: ServiceError | None = None


@dataclass(slots=True)
class Errand:
    """A decision that is ready to be dispatched.

    `accept` is the output filter; an output that it refuses is a failed attempt. `intent_durable`
    returns once the INTENT is on disk, and raises if it can't be. `fresh`: no kept answer will do.
    """

    decision: Decision
    accept: Callable[[Outputs], Outputs]
    intent_durable: Callable[[], Awaitable[None]]
    clock: Clock
    size_class: int = 0
    fresh: bool = False

    def left(self) -> float:
        """Return the seconds left to the decision's deadline."""
        return self.decision.deadline - self.clock.monotonic()


@dataclass(slots=True)
class _Open:
    """An attempt that was begun and has to be ended."""

    candidate: Candidate
    permit: Permit
    attempt: decision_pb2.Attempt
    start: float
    size_class: int
    task: str

    def elapsed_us(self, clock: Clock) -> int:
        """Return the microseconds since the attempt began."""
        return int((clock.monotonic() - self.start) * 1e6)


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of one attempt."""

    errand: Errand
    entry: Entry
    kind: decision_pb2.AttemptKind
    budget_s: float
    answer: Answer


class Attempter:
    """Makes attempts over the paths."""

    def __init__(
        self,
        paths: Mapping[str, Inference],
        board: Board,
        signer: GrantSigner,
        clock: Clock,
        cache: ResponseCache | None = None,
    ) -> None:
        self._paths = paths
        self._board = board
        self._signer = signer
        self._clock = clock
        self._cache = cache
        self._streams_only: set[str] = set()

    async def attempt(
        self,
        errand: Errand,
        entry: Entry,
        kind: decision_pb2.AttemptKind,
        budget_s: float,
        answer: Answer,
    ) -> ServiceError | None:
        """Make one attempt within `budget_s`. Fill the answer, or return why it failed."""
        if self._cache is not None and not errand.fresh:
            place = self._cache.place(errand.decision, entry.candidate)
            if place is not None:
                call = _Call(errand, entry, kind, budget_s, answer)
                return await self._through(self._cache, place, call)
        return await self._make(errand, entry, kind, budget_s, answer)

    async def _make(
        self,
        errand: Errand,
        entry: Entry,
        kind: decision_pb2.AttemptKind,
        budget_s: float,
        answer: Answer,
    ) -> ServiceError | None:
        if entry.candidate.path == "remote":
            await errand.intent_durable()
            budget_s = min(budget_s, errand.left())  # the wait may have taken all of it
        if budget_s < MIN_TIME_S:
            return DeadlineExceededError("DEADLINE_EXCEEDED", "no time is left for an attempt")
        open_ = self._open(errand, entry, kind, answer)
        if open_ is None:
            return UnavailableError("BREAKER_OPEN", "the candidate is not asked at the moment")
        error: ServiceError | None = None
        try:
            with self._span(open_) as span:
                error = await self._ask(errand, open_.candidate, open_.attempt, budget_s, answer)
                if error is not None:
                    span.set_status(trace.StatusCode.ERROR, error.reason)
        except BaseException:  # cancelled, or a fault of ours: the permit goes back in any case
            self._cancelled(open_)
            raise
        self._close(open_, error)
        if error is None:
            answer.candidate = entry.candidate
            answer.fallback = entry.rank > 1
        return error

    # ---- around it, the response cache ------------------------------------------------------

    async def _through(
        self, cache: ResponseCache, place: Place, call: _Call
    ) -> ServiceError | None:
        """Give the answer that is kept, or that an equal question is getting; else ask."""
        start = self._clock.monotonic()
        until = start + call.budget_s
        kept = await cache.get(place)
        if kept is not None and self._take(call, kept, start):
            return None
        error: ServiceError | None = None

        async def ask() -> inference_pb2.InferResult | None:
            nonlocal error
            left = until - self._clock.monotonic()
            error = await self._make(call.errand, call.entry, call.kind, left, call.answer)
            if error is not None:
                return None
            result = inference_pb2.InferResult(
                outputs=call.answer.outputs, finish_reason=call.answer.finish_reason
            )
            await cache.put(place, result)
            return result

        try:
            async with asyncio.timeout(call.budget_s + _KEEPING_S):
                result, mine = await cache.flights.run(place.name, ask)
        except TimeoutError:
            return DeadlineExceededError("ATTEMPT_TIMEOUT", "an equal question has no answer yet")
        if mine:
            return error
        if result is not None and self._take(call, result, start):
            return None
        # The other one failed, perhaps for reasons of its own: a deadline, a breaker's probe.
        left = until - self._clock.monotonic()
        return await self._make(call.errand, call.entry, call.kind, left, call.answer)

    def _take(self, call: _Call, kept: inference_pb2.InferResult, start: float) -> bool:
        """Fill the answer from what was kept, by the same filter as any output."""
        try:
            outputs = call.errand.accept(kept.outputs)
        except ServiceError:
            return False  # the contract has changed since
        now = self._clock.monotonic()
        attempt = decision_pb2.Attempt(
            candidate=candidate_ref(call.entry.candidate),
            kind=decision_pb2.ATTEMPT_KIND_CACHE,
            start_time_unix_us=self._clock.unix_us() - int((now - start) * 1e6),
            latency_us=int((now - start) * 1e6),
        )
        answer = call.answer
        answer.attempts.append(attempt)
        answer.outputs, answer.finish_reason = outputs, kept.finish_reason
        answer.candidate, answer.fallback = call.entry.candidate, call.entry.rank > 1
        answer.cached = True
        return True

    async def stream(
        self,
        errand: Errand,
        entry: Entry,
        kind: decision_pb2.AttemptKind,
        first_chunk_s: float,
        answer: Answer,
    ) -> AsyncGenerator[inference_pb2.InferChunk]:
        """Make one attempt whose output comes in chunks; the first within `first_chunk_s`.

        Raises:
            ServiceError: the candidate failed, or its stream ended without its final message.
        """
        open_ = self._open(errand, entry, kind, answer)
        if open_ is None:
            raise UnavailableError("BREAKER_OPEN", "the candidate is not asked at the moment")
        item = self._item(errand.decision, open_.candidate, errand.left())
        messages = self._paths[open_.candidate.path].infer_stream(item)
        span = self._begin_span(open_)
        worked = False
        try:
            try:
                async with aclosing(self._chunks(messages, open_, first_chunk_s, answer)) as chunks:
                    async for chunk in chunks:
                        worked = True
                        yield chunk
            except ServiceError as error:
                span.set_status(trace.StatusCode.ERROR, error.reason)
                if worked and not open_.attempt.bytes_out:
                    # Nobody said what it took: the path itself is gone.
                    _estimate_cost(open_.attempt, open_.candidate)
                self._close(open_, error)
                raise
            self._close(open_, None)
        except ServiceError:
            raise
        except BaseException:  # cancelled, closed, or a fault of ours
            self._cancelled(open_)
            raise
        finally:
            span.end()
            await messages.aclose()

    async def _chunks(
        self,
        messages: AsyncGenerator[inference_pb2.InferStreamResponse],
        open_: _Open,
        first_chunk_s: float,
        answer: Answer,
    ) -> AsyncGenerator[inference_pb2.InferChunk]:
        """Yield a stream's chunks; read its end."""
        first = True
        ended = False
        before = 0.0
        gap = metrics.chunk_gaps(open_.candidate.path, open_.candidate.id)
        while True:
            try:
                waited = asyncio.wait_for(anext(messages), first_chunk_s if first else None)
                message = await waited
            except StopAsyncIteration:
                break
            except TimeoutError:
                _estimate_cost(open_.attempt, open_.candidate)
                text = f"no chunk within {first_chunk_s * 1e3:.0f} ms"
                raise DeadlineExceededError("ATTEMPT_TIMEOUT", text) from None
            if message.HasField("failed"):
                meter(open_.attempt, message.failed)
                continue  # the call's own error comes next
            if message.HasField("final"):
                ended = True
                meter(open_.attempt, message.final)
                error = judge(message.final)
                if error is not None:
                    raise error
                answer.finish_reason = message.final.finish_reason
                continue
            now = self._clock.monotonic()
            if first:
                first = False
                open_.attempt.first_chunk_us = open_.elapsed_us(self._clock)
            else:
                gap(now - before)
            before = now
            yield message.chunk
        if not ended:
            raise UnavailableError("STREAM_CUT", "the stream ended without its final message")

    # ---- the beginning and the end of every attempt -----------------------------------------

    def _open(
        self, errand: Errand, entry: Entry, kind: decision_pb2.AttemptKind, answer: Answer
    ) -> _Open | None:
        """Take leave from the breaker and begin to meter."""
        candidate = entry.candidate
        permit = self._board.begin(candidate)
        if permit is None:
            return None
        attempt = decision_pb2.Attempt(
            candidate=candidate_ref(candidate),
            kind=decision_pb2.ATTEMPT_KIND_PROBE if permit.probe else kind,
            start_time_unix_us=self._clock.unix_us(),
        )
        answer.attempts.append(attempt)
        start, task = self._clock.monotonic(), errand.decision.task.name
        return _Open(candidate, permit, attempt, start, errand.size_class, task)

    def _close(self, open_: _Open, error: ServiceError | None) -> None:
        """Report how the attempt went."""
        seconds = self._clock.monotonic() - open_.start
        open_.attempt.latency_us = int(seconds * 1e6)
        if error is not None:
            open_.attempt.code = error.code.value[0]
            open_.attempt.reason = error.reason
        metrics.attempted(open_.task, open_.attempt)
        self._board.end(
            open_.candidate,
            open_.permit,
            seconds=seconds,
            size_class=open_.size_class,
            error=error,
            slow_after_s=open_.candidate.slow_after_s,
        )

    def _cancelled(self, open_: _Open) -> None:
        """Report that nobody waits any more; that says nothing about the candidate."""
        open_.attempt.cancelled = True
        open_.attempt.latency_us = open_.elapsed_us(self._clock)
        _estimate_cost(open_.attempt, open_.candidate)
        metrics.attempted(open_.task, open_.attempt)
        self._board.abandon(open_.candidate, open_.permit)

    @contextmanager
    def _span(self, open_: _Open) -> Iterator[trace.Span]:
        span = self._begin_span(open_)
        with trace.use_span(span, end_on_exit=True):
            yield span

    def _begin_span(self, open_: _Open) -> trace.Span:
        span = telemetry.begin_span(_tracer, names.SPAN_ATTEMPT)
        span.set_attribute(names.CANDIDATE, open_.candidate.id)
        span.set_attribute(names.PATH, open_.candidate.path)
        kind = decision_pb2.AttemptKind.Name(open_.attempt.kind)
        span.set_attribute(names.ATTEMPT_KIND, kind)
        return span

    # ---- one call ---------------------------------------------------------------------------

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
            async with asyncio.timeout(budget_s):
                await asyncio.sleep(0)  # a turn for the INTENT: it is handed over first
                result = await self._infer(candidate, item)
        except ServiceError as failed:
            return failed
        except TimeoutError:
            _estimate_cost(attempt, candidate)
            message = f"no answer within {budget_s * 1e3:.0f} ms"
            return DeadlineExceededError("ATTEMPT_TIMEOUT", message)
        meter(attempt, result)
        error = judge(result)
        if error is not None:
            return error
        try:
            outputs = errand.accept(result.outputs)
        except ServiceError as refused:
            return refused
        answer.outputs = outputs
        answer.finish_reason = result.finish_reason
        return None

    async def _infer(
        self, candidate: Candidate, item: inference_pb2.InferItem
    ) -> inference_pb2.InferResult:
        """Ask for a whole answer; a model that answers in streams only has its stream collected."""
        path = self._paths[candidate.path]
        if candidate.id not in self._streams_only:
            result = await path.infer(item)
            error = from_status(result.status) if result.HasField("status") else None
            if error is None or error.reason != _STREAMS_ONLY:
                return result
            self._streams_only.add(candidate.id)  # said before anything was asked
        return await collect(item, path.infer_stream(item))

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


def judge(result: inference_pb2.InferResult) -> ServiceError | None:
    """Return why a result is no answer."""
    if result.finish_reason == inference_pb2.FINISH_REASON_CONTENT_FILTER:
        message = "the vendor's content policy refused to answer"
        return FailedPreconditionError(CONTENT_FILTERED, message)
    return from_status(result.status) if result.HasField("status") else None


def _estimate_cost(attempt: decision_pb2.Attempt, candidate: Candidate) -> None:
    """Count a call that was cut off at its expected cost: a vendor may bill for it."""
    if candidate.cost_nanos:
        attempt.cost.currency_code = "USD"
        attempt.cost.nanos = candidate.cost_nanos
        attempt.cost.basis = decision_pb2.COST_BASIS_ESTIMATED


def meter(attempt: decision_pb2.Attempt, result: inference_pb2.InferResult) -> None:
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
