"""Batch jobs after they were prepared: sent, looked at, their answers filtered and recorded.

Whoever works on a job holds its turn (job_store.py) and goes on from what is written there and in
the log, so that any router can, also after a restart. A step that fails because something is away
is tried again at the next look; nothing is sent twice, and no answer is given twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping

import grpc

from services.chassis.clock import Clock
from services.chassis.errors import (
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    PermissionDeniedError,
    ServiceError,
    UnavailableError,
)
from services.router import metrics
from services.router.assemble import not_redacted
from services.router.decision import Decision
from services.router.grants import GrantSigner
from services.router.job_items import JobItems, candidate_of
from services.router.job_store import Item, Job, JobState, JobStore, Part
from services.router.plan import Entry, Kind
from services.router.ports import Bulk
from services.router.steps import Steps
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import bulk_pb2, inference_pb2

log = logging.getLogger(__name__)

AT_ONCE = 32
_JOBS_AT_ONCE = 4
_GRANT_S = 60.0
_TRIES = 3
_INTERRUPTED = "BULK_INTERRUPTED"  # remote's word for a batch that was cut off before it was one
_UNKNOWN = "BULK_UNKNOWN"  # and for one that it does not know
_GRACE_S = 3600.0  # for the vendor to let go of a batch that was ended
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
    }
)


class JobWork:
    """Goes on with jobs."""

    def __init__(
        self,
        *,
        store: JobStore,
        items: JobItems,
        steps: Steps,
        bulk: Bulk,
        signer: GrantSigner,
        clock: Clock,
    ) -> None:
        self._store = store
        self._items = items
        self._steps = steps
        self._bulk = bulk
        self._signer = signer
        self._clock = clock

    async def watch(self, interval_s: float) -> None:
        """Go on with every job that has not ended, again and again, until cancelled."""
        while True:
            try:
                open_ = await self._store.open()
            except ServiceError:
                open_ = []  # the state store is away
            else:
                metrics.JOBS_OPEN.set(len(open_))
            rest = iter(open_)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_JOBS_AT_ONCE, len(open_))):
                    group.create_task(self._some(rest))
            await asyncio.sleep(interval_s)

    async def _some(self, jobs: Iterator[str]) -> None:
        for job_id in jobs:
            try:
                await self.advance(job_id)
            except ServiceError as error:
                log.warning("a job has to wait", extra={"job": job_id, "why": error.reason})
            except Exception:  # one job's trouble is not the others'
                log.exception("a job can't go on", extra={"job": job_id})

    async def advance(self, job_id: str) -> None:
        """Go on with a job as far as it goes now, unless somebody else does.

        Raises:
            ServiceError: the log or the state store is away; nothing is lost.
        """
        async with self._store.working(job_id) as mine:
            if not mine:
                return
            job = await self._store.load(job_id)
            if job is None:
                await self._store.forget(job_id)
            elif job.state is JobState.PREPARING:  # nobody prepares it: the turn is ours
                self._end(job, JobState.INTERRUPTED)
                await self._store.save(job)
            else:
                await self.go_on(job, {})

    async def go_on(self, job: Job, decisions: Mapping[str, Decision]) -> None:
        """Take each part a step further. `decisions` are those that need not be read from the log.

        Raises:
            ServiceError: the log or the state store is away; nothing is lost.
        """
        for number, part in enumerate(job.parts):
            if part.done:
                await self._forget(job, number, part)
                continue
            if part.sent:
                await self._look(job, number, part)
            elif job.cancelling:
                await self._settle(
                    job, number, CancelledError("JOB_CANCELLED", "the job was ended")
                )
            else:
                await self._send(job, number, part, decisions)
            part.done = not job.waiting(number)
            await self._store.save(job)
            if part.done:  # recorded, and known to be: now nobody needs it any more
                await self._forget(job, number, part)
        if not job.ended and all(part.done for part in job.parts):
            self._end(job, JobState.CANCELLED if job.cancelling else JobState.ENDED)
            await self._store.save(job)

    def _end(self, job: Job, state: JobState) -> None:
        job.state, job.ended = state, self._clock.unix_us()

    # ---- sending ----------------------------------------------------------------------------

    async def _send(
        self, job: Job, number: int, part: Part, decisions: Mapping[str, Decision]
    ) -> None:
        """Hand a part to the vendor, each item with a grant of its own."""
        ready: list[inference_pb2.InferItem] = []
        for item in job.waiting(number):
            try:
                decision = decisions.get(item.decision) or await self._taken_up(part, item)
            except ServiceError as error:
                if _is_passing(error):
                    raise
                await self._items.settle(job, item, None, error)
            else:
                ready.append(self._item(part, decision))
        if not ready:
            return
        try:
            reply = await self._bulk.submit(_name(job, number, part), ready)
        except ServiceError as error:
            if not (_is_passing(error) and self._in_time(job)):
                await self._settle(job, number, error)
            return
        part.sent, part.batch = True, reply.vendor_batch_id

    async def _taken_up(self, part: Part, item: Item) -> Decision:
        """Return a decision from the log, if the rules of now let its candidate be asked."""
        decision = await self._items.take_up(item)
        assert decision.assembled is not None
        if not_redacted(decision.task, decision.assembled.model_input, decision.entity):
            raise FailedPreconditionError(
                "INPUT_NOT_REDACTED", "the input holds what the task's rules redact now"
            )
        wanted = candidate_of(part).id
        for entry in self._steps.plan(decision).entries:
            if entry.candidate.id == wanted:
                denials = [r for r in entry.refusals if r.kind is Kind.POLICY]
                if not denials:
                    _not_drained(entry)
                    return decision
                message = f"policy: {', '.join(r.message for r in denials)}"
                rules = ",".join(r.rule for r in denials)
                raise PermissionDeniedError("POLICY_REFUSED", message, metadata={wanted: rules})
        gone = f"the task has no candidate {wanted} any more"
        raise PermissionDeniedError("CANDIDATE_GONE", gone)

    def _item(self, part: Part, decision: Decision) -> inference_pb2.InferItem:
        assert decision.assembled is not None
        candidate = candidate_of(part)
        return inference_pb2.InferItem(
            context=context_pb2.ItemContext(
                id=decision.id,
                time_left_us=int(_GRANT_S * 1e6),
                priority=decision.priority,
                caller=decision.caller,
            ),
            model=candidate.model,
            version=candidate.version,
            provider=candidate.provider,
            input=decision.assembled.model_input,
            decision_id=decision.id,
            grant=self._signer.sign(decision, candidate, _GRANT_S),
        )

    # ---- looking ----------------------------------------------------------------------------

    async def _look(self, job: Job, number: int, part: Part) -> None:
        """Ask how far a part's batch is, and take its answers in."""
        name = _name(job, number, part)
        try:
            if not part.cancelled and (job.cancelling or not self._in_time(job)):
                found = await self._bulk.cancel(name)
                part.cancelled = bool(found.vendor_batch_id)
            else:
                found = await self._bulk.get(name)
        except ServiceError as error:
            # The vendor may have the answers all the same, for as long as remote knows the batch.
            if error.reason == _UNKNOWN or not self._in_time(job, _GRACE_S):
                await self._settle(job, number, error)
            return
        part.batch = found.vendor_batch_id
        results = {result.id: result for result in found.results}
        if found.state == bulk_pb2.BULK_STATE_DONE:
            missing = UnavailableError("BULK_WITHOUT_RESULT", "the batch has no result for it")
            await self._settle(job, number, missing, results)
        elif found.state == bulk_pb2.BULK_STATE_FAILED:
            again = found.reason == _INTERRUPTED and part.tries < _TRIES and not job.cancelling
            if again:  # nothing was asked, so it may begin anew, under another name
                part.tries, part.sent = part.tries + 1, False
            else:
                refused = UnavailableError(found.reason, "the vendor did not take the batch")
                await self._settle(job, number, refused, results)
        elif not self._in_time(job, _GRACE_S):
            late = DeadlineExceededError("JOB_EXPIRED", "no answer came in the job's time")
            await self._settle(job, number, late, results)

    async def _forget(self, job: Job, number: int, part: Part) -> None:
        """Have the vendor delete a part's inputs and answers; try again while there is time."""
        if part.forgotten:
            return
        try:
            await self._bulk.forget(_name(job, number, part))
        except ServiceError as error:
            if _is_passing(error) and self._in_time(job, _GRACE_S):
                return
            extra = {"job": job.id, "batch": part.batch, "why": error.reason}
            log.warning("a vendor keeps the data of a batch", extra=extra)
        part.forgotten = True
        await self._store.save(job)

    def _in_time(self, job: Job, grace_s: float = 0.0) -> bool:
        return self._clock.unix_us() <= job.until + grace_s * 1e6

    async def _settle(
        self,
        job: Job,
        number: int,
        error: ServiceError,
        results: Mapping[str, inference_pb2.InferResult] | None = None,
    ) -> None:
        """Give each item that waits its result, or the error where there is none for it."""
        found = results or {}
        waiting = job.waiting(number)
        for start in range(0, len(waiting), AT_ONCE):
            ends = await asyncio.gather(
                *(
                    self._items.settle(job, item, found.get(item.decision), error)
                    for item in waiting[start : start + AT_ONCE]
                ),
                return_exceptions=True,  # all have ended before the job's turn does
            )
            for end in ends:
                if end is not None:
                    raise end


def _not_drained(entry: Entry) -> None:
    """Raise while an operator keeps traffic from a candidate's path: the job waits."""
    for reason in entry.refusals:
        if reason.rule == "drained":
            raise UnavailableError("PATH_DRAINED", reason.message)


def _is_passing(error: ServiceError) -> bool:
    """Tell whether the next try may go better."""
    return error.code in _PASSING or error.retry_after is not None


def _name(job: Job, number: int, part: Part) -> str:
    """Return what remote knows a part by."""
    return f"{job.id}.{number}.{part.tries}"
