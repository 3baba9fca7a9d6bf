"""Batch jobs: the way of many requests up to their INTENT, and what callers see of them.

Each item is admitted, enriched, assembled and planned as any request, with one more constraint:
only candidates that take batch jobs. What happens from the vendor on is in job_work.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc

from services.chassis.call import Call, Identity
from services.chassis.clock import Clock
from services.chassis.errors import (
    AbortedError,
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    ServiceError,
    to_status,
)
from services.router import metrics
from services.router.board import Board
from services.router.catalog import Task
from services.router.decision import Decision
from services.router.job_store import Item, ItemState, Job, JobState, JobStore, Part
from services.router.job_work import JobWork
from services.router.limiter import Limiter, Outcome, Priority
from services.router.limiter import Refusal as Full
from services.router.pending import put_away
from services.router.plan import Entry, Kind, Plan, Refusal
from services.router.ports import Audit
from services.router.records import candidate_ref, sum_of
from services.router.spare import Spare
from services.router.steps import CatalogView, Steps
from twinpath.audit.v1 import record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.router.v1 import jobs_pb2, router_pb2

AT_ONCE = 32
# Vendors promise a day. What they answer at its end must still be fetched and recorded.
WINDOW_S = 26 * 3600.0
_PAGE = 50
_PART_BYTES = 8 * 1024 * 1024  # half of what a message may hold: grants and answers need room, too
_LONGEST_WAIT_S = 0.25
_FOR_NOW = (Kind.HEALTH, Kind.TIME)
# Of our own services, before there is a plan: no item is to blame.
_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)

_STATES = {
    JobState.PREPARING: jobs_pb2.JOB_STATE_PREPARING,
    JobState.RUNNING: jobs_pb2.JOB_STATE_RUNNING,
    JobState.ENDED: jobs_pb2.JOB_STATE_ENDED,
    JobState.CANCELLED: jobs_pb2.JOB_STATE_CANCELLED,
    JobState.INTERRUPTED: jobs_pb2.JOB_STATE_INTERRUPTED,
}


class Jobs:
    """What callers may do with jobs. Every method raises ServiceError and nothing else."""

    def __init__(
        self,
        *,
        store: JobStore,
        work: JobWork,
        steps: Steps,
        audit: Audit,
        board: Board,
        limiter: Limiter,
        spare: Spare,
        catalog: Callable[[], CatalogView],
        clock: Clock,
        key: bytes,
    ) -> None:
        """`key` is a secret of all routers: a plain digest of a job would confirm a guess of it."""
        self._key = hmac.digest(key, b"twinpath.job.v1", "sha256")
        self._store = store
        self._work = work
        self._steps = steps
        self._audit = audit
        self._board = board
        self._limiter = limiter
        self._spare = spare
        self._catalog = catalog
        self._clock = clock

    async def submit(self, request: jobs_pb2.SubmitJobRequest, call: Call) -> jobs_pb2.Job:
        """Prepare a job and send it; one that is known is given as it is."""
        job = self._new(request, call.identity)
        async with self._store.working(job.id) as mine:
            known = await self._store.load(job.id)
            if known is not None and known.digest != job.digest:
                raise FailedPreconditionError(
                    "IDEMPOTENCY_KEY_REUSED", "this key was used for another job"
                )
            if known is not None and known.state not in (JobState.PREPARING, JobState.INTERRUPTED):
                return described(known)
            if not mine:
                raise AbortedError(
                    "IDEMPOTENCY_IN_PROGRESS", "this job is being prepared", retry_after=0.5
                )
            self._check(request)
            # From here on a crash leaves a job that says so, and from which nothing has left.
            await self._store.create(job)
            decisions = await self._prepare(job, request, call)
            job.state = JobState.RUNNING
            await self._store.save(job)
            # And from here on whoever looks after jobs goes on with it.
            await self._work.go_on(job, decisions)
        return described(job)

    async def get(self, job_id: str, call: Call) -> jobs_pb2.Job:
        """Return a job of the caller's."""
        return described(await self._own(job_id, call))

    async def page(self, request: jobs_pb2.ListJobsRequest, call: Call) -> tuple[list[Job], str]:
        """Return a page of the caller's jobs, and the token for the next."""
        size = request.page_size or _PAGE
        before = int(request.page_token or 0)
        who = call.identity
        jobs = await self._store.of(who.tenant, who.subject, before, size + 1)
        more = str(jobs[size - 1].created) if len(jobs) > size else ""
        return jobs[:size], more

    async def cancel(self, job_id: str, call: Call) -> jobs_pb2.Job:
        """End a job of the caller's; one that has ended stays as it is."""
        job = await self._own(job_id, call)
        if not job.ended:
            await self._store.wish_end(job_id)
            await self._work.advance(job_id)
            job = await self._own(job_id, call)
        return described(job)

    async def results(self, job_id: str, call: Call) -> AsyncGenerator[router_pb2.BatchResult]:
        """Yield each item's result, in the order of the items, some of them read ahead."""
        job = await self._own(job_id, call)
        if not job.ended:
            raise FailedPreconditionError(
                "JOB_NOT_ENDED", f"the job is {job.state}; its results come at its end"
            )
        for start in range(0, len(job.items), AT_ONCE):
            some = job.items[start : start + AT_ONCE]
            for result in await asyncio.gather(*(self._result(item) for item in some)):
                yield result

    # ---- a job of one's own -----------------------------------------------------------------

    def _new(self, request: jobs_pb2.SubmitJobRequest, who: Identity) -> Job:
        bare = jobs_pb2.SubmitJobRequest()
        bare.CopyFrom(request)
        bare.ClearField("idempotency_key")
        asked = bare.SerializeToString(deterministic=True)
        now = self._clock.unix_us()
        return Job(
            id=_id_of(who, request.idempotency_key),
            tenant=who.tenant,
            caller=who.subject,
            task=request.task,
            digest=hmac.digest(self._key, asked, "sha256").hex(),
            created=now,
            until=now + int(WINDOW_S * 1e6),
            items=[Item(item.id) for item in request.items],
        )

    async def _own(self, job_id: str, call: Call) -> Job:
        job = await self._store.load(job_id)
        who = call.identity
        if job is None or (job.tenant, job.caller) != (who.tenant, who.subject):
            raise NotFoundError("JOB_UNKNOWN", "there is no such job", metadata={"job": job_id})
        return job

    def _check(self, request: jobs_pb2.SubmitJobRequest) -> None:
        """Refuse a job that no item of could be asked."""
        task = self._catalog().catalog.tasks.get(request.task)
        if task is None:
            raise NotFoundError(
                "TASK_UNKNOWN",
                f"there is no task {request.task!r}",
                metadata={"task": request.task},
            )
        bulk = _in_bulk(task)
        if not bulk or (request.candidate and request.candidate not in bulk):
            what = f"candidate {request.candidate!r}" if request.candidate else "any candidate"
            raise FailedPreconditionError(
                "NO_BULK_CANDIDATE",
                f"the catalog does not say `bulk: true` of {what} of task {task.name}",
                metadata={"task": task.name},
            )

    # ---- up to the INTENT -------------------------------------------------------------------

    async def _prepare(
        self, job: Job, request: jobs_pb2.SubmitJobRequest, call: Call
    ) -> dict[str, Decision]:
        """Take each item up to its INTENT; return the decisions of those that may go.

        Raises:
            ServiceError: something of ours is away, for all items alike: nothing has left.
        """
        rest = iter(zip(job.items, request.items, strict=True))
        decisions: dict[str, Decision] = {}

        async def some() -> None:
            for item, asked in rest:  # shared by all: each takes what comes next
                one = _request(request, asked, job.id)
                try:
                    found = await self._one(job, item, one, request.candidate, call)
                except ServiceError as error:
                    if error.code in _AWAY:
                        raise
                    found = error
                if isinstance(found, Decision):
                    decisions[found.id] = found
                else:
                    item.state = ItemState.REFUSED
                    item.status = to_status(found).SerializeToString().hex()
                    metrics.job_item(job.task, "", found.reason)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(job.items))):
                    group.create_task(some())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return decisions

    async def _one(
        self, job: Job, item: Item, request: router_pb2.InferRequest, only: str, call: Call
    ) -> Decision | ServiceError:
        """Take one item up to its INTENT, which is durable when this returns; or say why not."""
        left = call.deadline - self._clock.monotonic()
        async with self._spare.turn(left), self._place(request, call):
            decision = self._steps.admit(request, call, item.id)
            item.decision = decision.id
            await self._steps.enrich(decision)
            self._steps.assemble(decision)
            # From here on it has the job's time, not the call's.
            decision.deadline = self._clock.monotonic() + (job.until - job.created) / 1e6
            decision.plan = plan = self._narrowed(self._steps.plan(decision), decision.task, only)
            if not plan.admitted:
                return await self._steps.refuse(decision, _meant(plan))
            candidate = plan.admitted[0].candidate
            await self._steps.intend(decision, put_away(decision, candidate))
        assert decision.assembled is not None
        size = decision.assembled.model_input.ByteSize()
        item.part = _part_of(job, candidate_ref(candidate), size)
        return decision

    @asynccontextmanager
    async def _place(self, request: router_pb2.InferRequest, call: Call) -> AsyncIterator[None]:
        """Hold a place, once there is one; how long an item takes says nothing about load.

        Raises:
            ResourceExhaustedError: OVERLOADED, there was none until the call's time was up.
        """
        while True:
            now = self._clock.monotonic()
            ticket = self._limiter.acquire(now, Priority.BATCH, request.task)
            if not isinstance(ticket, Full):
                break
            wait = min(ticket.retry_after_s, _LONGEST_WAIT_S)
            if now + wait >= call.deadline:
                raise ResourceExhaustedError(
                    "OVERLOADED",
                    f"{ticket.in_flight} decisions are in flight, the limit is {ticket.limit}",
                    retry_after=ticket.retry_after_s,
                )
            await asyncio.sleep(wait)
        try:
            yield
        finally:
            self._limiter.release(ticket, self._clock.monotonic(), Outcome.IGNORED)

    def _narrowed(self, plan: Plan, task: Task, only: str) -> Plan:
        """Return the plan without those who take no batch jobs, and why not.

        Who is only away or slow at the moment may be asked: a job waits.
        """
        admitted: list[Entry] = []
        later: list[Entry] = []
        refused: list[Entry] = []
        bulk = _in_bulk(task)
        for entry in plan.entries:
            name, reason = entry.candidate.id, None
            if name not in bulk:
                reason = Refusal(Kind.CONSTRAINT, "not_in_bulk", "it takes no batch jobs")
            elif only and name != only:
                reason = Refusal(Kind.CONSTRAINT, "only_candidate", f"the job asks {only} alone")
            elif not self._board.takes_jobs(entry.candidate):
                reason = Refusal(Kind.CONSTRAINT, "bulk_unsupported", "its vendor has no batches")
            if reason is not None:
                reasons = (*entry.refusals, reason)
                refused.append(dataclasses.replace(entry, rank=0, score=0.0, refusals=reasons))
            elif entry.rank:
                admitted.append(entry)
            elif all(refusal.kind in _FOR_NOW for refusal in entry.refusals):
                later.append(dataclasses.replace(entry, refusals=()))
            else:
                refused.append(entry)
        later.sort(key=lambda entry: entry.candidate.preference)
        ranked = [
            dataclasses.replace(entry, rank=rank)
            for rank, entry in enumerate((*admitted, *later), start=1)
        ]
        refused.sort(key=lambda entry: entry.candidate.id)
        return dataclasses.replace(plan, entries=(*ranked, *refused))

    # ---- results ----------------------------------------------------------------------------

    async def _result(self, item: Item) -> router_pb2.BatchResult:
        """Read an item's result: a decision's reply is in the log, and nowhere else."""
        result = router_pb2.BatchResult(id=item.id)
        if item.state is ItemState.WAITING:  # of a job that was interrupted
            cut = AbortedError("JOB_INTERRUPTED", "the job was cut off before anything was sent")
            result.status.CopyFrom(to_status(cut))
            return result
        if item.state is not ItemState.SUCCEEDED:
            result.status.MergeFromString(bytes.fromhex(item.status))
            return result
        for stored in await self._audit.get(item.decision, payload=True):
            if stored.record.kind == record_pb2.RECORD_KIND_OUTCOME and stored.payload.reply:
                result.response.MergeFromString(stored.payload.reply)
                result.response.leaf_index = stored.leaf_index
                return result
        gone = FailedPreconditionError(
            "REPLY_GONE", "the item was answered, and the answer is not kept any more"
        )
        result.status.CopyFrom(to_status(gone))
        return result


def described(job: Job) -> jobs_pb2.Job:
    """Return a job as callers see it."""
    states = Counter(item.state for item in job.items)
    cancelling = job.cancelling and job.state is JobState.RUNNING
    out = jobs_pb2.Job(
        id=job.id,
        task=job.task,
        state=jobs_pb2.JOB_STATE_CANCELLING if cancelling else _STATES[job.state],
        items=len(job.items),
        succeeded=states[ItemState.SUCCEEDED],
        failed=states[ItemState.FAILED],
        refused=states[ItemState.REFUSED],
        create_time_unix_us=job.created,
        end_time_unix_us=job.ended,
        deadline_unix_us=job.until,
    )
    sizes = Counter(item.part for item in job.items)
    for number, part in enumerate(job.parts):
        candidate = decision_pb2.CandidateRef.FromString(bytes.fromhex(part.candidate))
        out.parts.add(candidate=candidate, items=sizes[number], vendor_batch_id=part.batch)
    costs = [
        decision_pb2.Cost.FromString(bytes.fromhex(item.cost)) for item in job.items if item.cost
    ]
    cost = sum_of(costs)
    if cost is not None:
        out.cost.CopyFrom(cost)
    return out


def _id_of(who: Identity, key: str) -> str:
    """Return a job's id: by its key, so that every router gives the same; else a random one."""
    if not key:
        return f"job-{secrets.token_hex(16)}"
    total = hashlib.sha256(b"twinpath.job.v1\x00")
    for part in (who.tenant, who.subject, key):
        raw = part.encode()
        total.update(len(raw).to_bytes(4, "little") + raw)
    return f"job-{total.hexdigest()[:32]}"


def _request(
    job: jobs_pb2.SubmitJobRequest, item: jobs_pb2.JobItem, job_id: str
) -> router_pb2.InferRequest:
    """Return an item as a request of its own; its key is the job's id."""
    return router_pb2.InferRequest(
        task=job.task,
        entity=item.entity,
        fields=item.fields,
        idempotency_key=job_id,
        purpose=job.purpose,
        data_class=item.data_class,
        priority=context_pb2.PRIORITY_BATCH,
        residency=item.residency,
        consents=item.consents,
    )


def _in_bulk(task: Task) -> frozenset[str]:
    """Return the ids of the candidates that may be asked in batches."""
    return frozenset(candidate.id for candidate in task.candidates if candidate.bulk)


def _meant(plan: Plan) -> Plan:
    """Return the plan of those who could take the job: why the others don't is beside the point."""
    entries = tuple(
        entry
        for entry in plan.entries
        if all(reason.kind is not Kind.CONSTRAINT for reason in entry.refusals)
    )
    return dataclasses.replace(plan, entries=entries) if entries else plan


def _part_of(job: Job, candidate: decision_pb2.CandidateRef, size: int) -> int:
    """Return the number of a part that goes to a candidate and has room; made if there is none."""
    wanted = candidate.SerializeToString(deterministic=True).hex()
    for number, part in enumerate(job.parts):
        if part.candidate == wanted and part.size + size <= _PART_BYTES:
            part.size += size
            return number
    job.parts.append(Part(wanted, size))
    return len(job.parts) - 1
