"""The gRPC face of batch jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from services.chassis import call as calls
from services.chassis.call import Call
from services.chassis.errors import InternalError
from services.router.jobs import Jobs, described
from twinpath.router.v1 import jobs_pb2, jobs_pb2_grpc


class JobsServicer(jobs_pb2_grpc.JobsServicer):
    """See router/v1/jobs.proto."""

    def __init__(self, jobs: Jobs, within_quota: Callable[[Call], Awaitable[None]]) -> None:
        self._jobs = jobs
        self._within_quota = within_quota

    async def SubmitJob(
        self, request: jobs_pb2.SubmitJobRequest, context: Any
    ) -> jobs_pb2.SubmitJobResponse:
        """Prepare a job and send it."""
        call = _call()
        await self._within_quota(call)
        return jobs_pb2.SubmitJobResponse(job=await self._jobs.submit(request, call))

    async def GetJob(
        self, request: jobs_pb2.GetJobRequest, context: Any
    ) -> jobs_pb2.GetJobResponse:
        """Say how far a job is."""
        return jobs_pb2.GetJobResponse(job=await self._jobs.get(request.job_id, _call()))

    async def ListJobs(
        self, request: jobs_pb2.ListJobsRequest, context: Any
    ) -> jobs_pb2.ListJobsResponse:
        """List the caller's jobs."""
        jobs, more = await self._jobs.page(request, _call())
        return jobs_pb2.ListJobsResponse(
            jobs=[described(job) for job in jobs], next_page_token=more
        )

    async def CancelJob(
        self, request: jobs_pb2.CancelJobRequest, context: Any
    ) -> jobs_pb2.CancelJobResponse:
        """End a job."""
        return jobs_pb2.CancelJobResponse(job=await self._jobs.cancel(request.job_id, _call()))

    async def ListJobResults(
        self, request: jobs_pb2.ListJobResultsRequest, context: Any
    ) -> AsyncIterator[jobs_pb2.ListJobResultsResponse]:
        """Give each item's result."""
        async with aclosing(self._jobs.results(request.job_id, _call())) as results:
            async for result in results:
                yield jobs_pb2.ListJobResultsResponse(result=result)


def _call() -> Call:
    call = calls.current()
    if call is None:
        raise InternalError("NO_CALL", "a request came in without passing the door")
    return call
