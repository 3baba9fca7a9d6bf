"""One item of a batch job once its result is known: judged, filtered, recorded, exactly once.

The log says what an item is and whether it has its end; the job's own state is only how far one
has looked. So a router that was killed in between repeats a look, and never a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from google.rpc import status_pb2

from services.chassis.clock import Clock
from services.chassis.errors import (
    DataLossError,
    FailedPreconditionError,
    ServiceError,
    from_status,
    to_status,
)
from services.router import metrics
from services.router.attempt import Answer, judge, meter
from services.router.decision import Decision
from services.router.job_store import Item, ItemState, Job, Part
from services.router.outputs import accept
from services.router.pending import take_up
from services.router.plan import Candidate
from services.router.ports import Audit
from services.router.records import candidate_ref, total_cost
from services.router.steps import CatalogView, Steps
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import inference_pb2

_INTENT = record_pb2.RECORD_KIND_INTENT
_OUTCOME = record_pb2.RECORD_KIND_OUTCOME
_FAILED = record_pb2.RECORD_KIND_FAILED
_ENDS = (_OUTCOME, _FAILED)
# What a record of another kind does not have, or the log fills in.
_OF_AN_INTENT = (
    "deadline_unix_us",
    "candidates",
    "subject",
    "input_hmac",
    "record_time_unix_us",
    "payload_digest",
)


class JobItems:
    """Gives items their results."""

    def __init__(
        self,
        *,
        steps: Steps,
        audit: Audit,
        catalog: Callable[[], CatalogView],
        clock: Clock,
    ) -> None:
        self._steps = steps
        self._audit = audit
        self._catalog = catalog
        self._clock = clock

    async def take_up(self, item: Item) -> Decision:
        """Return an item's decision from the log.

        Raises:
            ServiceError: as `pending.take_up`; the log is away, or has no such INTENT.
        """
        return take_up(_intent(await self._records(item)), self._catalog(), self._clock)

    async def settle(
        self,
        job: Job,
        item: Item,
        result: inference_pb2.InferResult | None,
        otherwise: ServiceError,
    ) -> None:
        """Give an item its result; `otherwise` is what became of it where there is none.

        Raises:
            ServiceError: the log is away; the item waits on.
        """
        stored = await self._records(item)
        part = job.parts[item.part]
        for one in stored:
            if one.record.kind in _ENDS:  # it was recorded, and then the router was killed
                _note(item, one.record.attempts, _error_of(one.record))
                return
        attempt = self._attempt(part, stored, result)
        error = otherwise if result is None else judge(result)
        try:
            decision = take_up(_intent(stored), self._catalog(), self._clock)
        except ServiceError as lost:
            error = lost
            await self._close(stored, attempt, lost)
        else:
            error = await self._end(part, decision, attempt, result, error)
        _note(item, [attempt] if attempt is not None else [], error)
        if attempt is not None:
            metrics.attempted(job.task, attempt)
        reason = "OK" if error is None else error.reason
        metrics.job_item(job.task, candidate_of(part).id, reason)

    async def _end(
        self,
        part: Part,
        decision: Decision,
        attempt: decision_pb2.Attempt | None,
        result: inference_pb2.InferResult | None,
        error: ServiceError | None,
    ) -> ServiceError | None:
        """Filter and record an answer, or record why there is none; return that."""
        answer = Answer(attempts=[] if attempt is None else [attempt])
        if error is None and result is not None:
            try:
                answer.outputs = accept(decision, result.outputs)
            except ServiceError as refused:
                error = refused
        if error is not None:
            _mark(attempt, error)
            return await self._steps.fail(decision, error, answer)
        assert result is not None
        answer.candidate, answer.finish_reason = candidate_of(part), result.finish_reason
        try:
            await self._steps.record(decision, self._steps.reply(decision, answer))
        except FailedPreconditionError as other:  # the key has another request's OUTCOME
            return other
        return None

    async def _close(
        self,
        stored: Sequence[audit_pb2.StoredRecord],
        attempt: decision_pb2.Attempt | None,
        error: ServiceError,
    ) -> None:
        """Record the end of an item of which only its INTENT's record is left."""
        intent = next((one.record for one in stored if one.record.kind == _INTENT), None)
        if intent is None:
            return  # and so nothing was ever asked
        _mark(attempt, error)
        record = record_pb2.Record()
        record.CopyFrom(intent)
        for name in _OF_AN_INTENT:
            record.ClearField(name)
        record.kind = _FAILED
        record.event_time_unix_us = self._clock.unix_us()
        record.code, record.reason = error.code.value[0], error.reason
        record.attempts.extend([attempt] if attempt is not None else [])
        context = context_pb2.ItemContext(id=f"{record.decision_id}.end", caller=record.caller)
        await self._audit.append(audit_pb2.Entry(context=context, record=record))

    async def _records(self, item: Item) -> list[audit_pb2.StoredRecord]:
        return await self._audit.get(item.decision, payload=True)

    def _attempt(
        self,
        part: Part,
        stored: Sequence[audit_pb2.StoredRecord],
        result: inference_pb2.InferResult | None,
    ) -> decision_pb2.Attempt | None:
        """Return the attempt that an item's part in a batch was; None: it never left."""
        if not part.sent:
            return None
        now = self._clock.unix_us()
        started = next((s.record.event_time_unix_us for s in stored[::-1]), now)
        attempt = decision_pb2.Attempt(
            candidate=candidate_ref(candidate_of(part)),
            kind=decision_pb2.ATTEMPT_KIND_BULK,
            start_time_unix_us=started,
            latency_us=now - started,
        )
        if result is not None:
            meter(attempt, result)
        return attempt


def candidate_of(part: Part) -> Candidate:
    """Return whom a part goes to, as it was planned; nothing is measured of it."""
    ref = decision_pb2.CandidateRef.FromString(bytes.fromhex(part.candidate))
    return Candidate(
        id=ref.id,
        path="remote",
        model=ref.model,
        version=ref.version,
        provider=ref.provider,
        region=ref.region,
        preference=0,
        cost_nanos=0,
        quality=0.0,
        slow_after_s=0.0,
        facts={},
    )


def _intent(stored: Sequence[audit_pb2.StoredRecord]) -> audit_pb2.StoredRecord:
    """Return the newest INTENT: one that was cut off while it was prepared has more."""
    for one in reversed(stored):
        if one.record.kind == _INTENT:
            return one
    raise DataLossError("INTENT_LOST", "the log has no INTENT of this item")


def _error_of(record: record_pb2.Record) -> ServiceError | None:
    """Return what a record says of a failure; None for an OUTCOME."""
    said = status_pb2.Status(code=record.code, message="it failed; the record has the reason")
    error = from_status(said)
    if error is not None:
        error.reason = record.reason
    return error


def _mark(attempt: decision_pb2.Attempt | None, error: ServiceError) -> None:
    if attempt is not None:
        attempt.code, attempt.reason = error.code.value[0], error.reason


def _note(item: Item, attempts: Sequence[decision_pb2.Attempt], error: ServiceError | None) -> None:
    """Write an item's end into the job."""
    item.state = ItemState.SUCCEEDED if error is None else ItemState.FAILED
    item.status = "" if error is None else to_status(error).SerializeToString().hex()
    cost = total_cost(attempts)
    item.cost = "" if cost is None else cost.SerializeToString().hex()
