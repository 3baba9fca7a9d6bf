"""A router over fakes of the mesh that runs batch jobs, and a vendor that takes them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import redis.asyncio

from services.chassis.errors import (
    ServiceError,
    to_status,
)
from services.router.job_items import JobItems
from services.router.job_store import JobStore
from services.router.job_work import JobWork
from services.router.jobs import Jobs
from services.router.spare import Spare
from services.router.steps import CatalogView
from tests.unit.router.ports import FakeAudit, World
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import bulk_pb2, inference_pb2
from twinpath.router.v1 import jobs_pb2

ENDED, RUNNING = jobs_pb2.JOB_STATE_ENDED, jobs_pb2.JOB_STATE_RUNNING
RESTRICTED = context_pb2.DATA_CLASS_RESTRICTED
TASK = "diabetes_progression"


class FakeBulk:
    """A path with batches: remembers what it was sent, answers once it is told to."""

    def __init__(self, log: FakeAudit) -> None:
        self._log = log
        self.jobs: dict[str, list[inference_pb2.InferItem]] = {}
        self.submits = 0
        self.kinds_at_submit: list[list[str]] = []
        self.error: ServiceError | None = None
        self.lost: ServiceError | None = None
        self.state = bulk_pb2.BULK_STATE_RUNNING
        self.reason = ""
        self.failures: dict[int, ServiceError] = {}
        self.cancelled: list[str] = []
        self.forgotten: list[tuple[str, int]] = []
        self.keeps: ServiceError | None = None
        self.value = 150.0

    async def submit(self, job_id: str, items: list[inference_pb2.InferItem]) -> bulk_pb2.BulkJob:
        """See ports.Bulk."""
        self.submits += 1
        self.kinds_at_submit.append(self._log.kinds())
        if self.error is not None:
            raise self.error
        self.jobs.setdefault(job_id, list(items))
        if self.lost is not None:  # it arrived, and the reply did not
            error, self.lost = self.lost, None
            raise error
        return self._job(job_id)

    async def get(self, job_id: str) -> bulk_pb2.BulkJob:
        """See ports.Bulk."""
        if self.error is not None:
            raise self.error
        return self._job(job_id)

    async def cancel(self, job_id: str) -> bulk_pb2.BulkJob:
        """See ports.Bulk."""
        self.cancelled.append(job_id)
        return self._job(job_id)

    async def forget(self, job_id: str) -> None:
        """See ports.Bulk."""
        if self.keeps is not None:
            raise self.keeps
        self.forgotten.append((job_id, self._log.kinds().count("OUTCOME")))

    def _job(self, job_id: str) -> bulk_pb2.BulkJob:
        job = bulk_pb2.BulkJob(
            id=job_id, state=self.state, reason=self.reason, vendor_batch_id=f"batch-{job_id}"
        )
        if self.state == bulk_pb2.BULK_STATE_DONE:
            for number, item in enumerate(self.jobs[job_id]):
                result = job.results.add(id=item.context.id)
                result.metering.bytes_out = 52
                if number in self.failures:
                    result.status.CopyFrom(to_status(self.failures[number]))
                    continue
                array = np.array([[self.value]], "f4")
                result.outputs.append(tensors.from_numpy("progression", array))
                cost = decision_pb2.Cost(
                    currency_code="USD", nanos=100, basis=decision_pb2.COST_BASIS_REPORTED
                )
                result.metering.cost.CopyFrom(cost)
        return job

    @property
    def sent(self) -> list[inference_pb2.InferItem]:
        """Every item that it was ever sent."""
        return [item for items in self.jobs.values() for item in items]


class ErasableAudit(FakeAudit):
    """A log whose payloads can go."""

    gone = False

    async def get(self, decision_id: str, *, payload: bool) -> list[audit_pb2.StoredRecord]:
        """See ports.Audit."""
        found = await super().get(decision_id, payload=payload)
        for stored in found:
            if self.gone:
                stored.erased = True
                stored.ClearField("payload")
        return found


class JobWorld(World):
    """A router over fakes that runs jobs. `restart` forgets all that it has in memory."""

    def __init__(self, catalog: Path, client: redis.asyncio.Redis) -> None:
        super().__init__(catalog)
        self.audit = ErasableAudit()
        self.steps._audit = self.audit
        self.bulk = FakeBulk(self.audit)
        self._client = client
        plain = self.remote.describe

        async def with_bulk() -> list[inference_pb2.ModelDescription]:
            models = await plain()
            for model in models:
                model.bulk = True
            return models

        self.remote.describe = with_bulk  # type: ignore[method-assign]
        self.restart()

    def restart(self) -> None:
        """Begin with what is in the state store and the log."""
        store = JobStore(self._client)
        view = lambda: CatalogView(self.catalog, stale=False)  # noqa: E731
        self.work = JobWork(
            store=store,
            items=JobItems(steps=self.steps, audit=self.audit, catalog=view, clock=self.clock),
            steps=self.steps,
            bulk=self.bulk,
            signer=self.signer,
            clock=self.clock,
        )
        self.jobs = Jobs(
            store=store,
            work=self.work,
            steps=self.steps,
            audit=self.audit,
            board=self.board,
            limiter=self.limiter,
            spare=Spare(self.clock),
            catalog=view,
            clock=self.clock,
            key=b"k" * 32,
        )

    async def submit(self, count: int = 2, subject: str = "alice", **more: Any) -> jobs_pb2.Job:
        """Submit a job of so many patients."""
        await self.board.refresh()
        request = asked(count, **more)
        return await self.jobs.submit(request, self.call(subject=subject))

    async def look(self, job: jobs_pb2.Job) -> jobs_pb2.Job:
        """Let the router look after a job once; return it."""
        await self.work.advance(job.id)
        return await self.jobs.get(job.id, self.call())

    async def results(self, job: jobs_pb2.Job) -> dict[str, Any]:
        """The results of a job by item."""
        return {r.id: r async for r in self.jobs.results(job.id, self.call())}

    def answers(self) -> None:
        """Let the vendor be done."""
        self.bulk.state = bulk_pb2.BULK_STATE_DONE

    def of_kind(self, kind: str) -> list[audit_pb2.Entry]:
        """The log's records of a kind."""
        wanted = record_pb2.RecordKind.Value(f"RECORD_KIND_{kind}")
        return [entry for entry in self.audit.log if entry.record.kind == wanted]


def asked(count: int, restricted: tuple[int, ...] = (), **more: Any) -> jobs_pb2.SubmitJobRequest:
    """A job of so many patients."""
    request = jobs_pb2.SubmitJobRequest(task=more.pop("task", TASK), **more)
    for number in range(count):
        item = request.items.add(id=f"i-{number}")
        item.entity["patient_id"].int64_value = number
        if number in restricted:
            item.data_class = RESTRICTED
    return request


@contextlib.asynccontextmanager
async def world_of(catalog: Path, url: str) -> AsyncIterator[JobWorld]:
    """A world with that state store, emptied."""
    client = redis.asyncio.Redis.from_url(url)
    try:
        await client.flushall()
        yield JobWorld(catalog, client)
    finally:
        await client.aclose()
