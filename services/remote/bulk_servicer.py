"""The gRPC face of bulk jobs."""

from __future__ import annotations

from services.chassis import call as calls
from services.remote.bulk import Bulk
from twinpath.inference.v1 import bulk_pb2, bulk_pb2_grpc

_LEFT_S = 60.0  # for calls that come past the chassis: tests


class RemoteBulk(bulk_pb2_grpc.BulkServicer):
    """See bulk.proto."""

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk

    async def SubmitBulk(
        self, request: bulk_pb2.SubmitBulkRequest, context: object
    ) -> bulk_pb2.SubmitBulkResponse:
        """Send a job."""
        del context
        job = await self._bulk.submit(request.job_id, request.items, _left_s())
        return bulk_pb2.SubmitBulkResponse(job=job)

    async def GetBulk(
        self, request: bulk_pb2.GetBulkRequest, context: object
    ) -> bulk_pb2.GetBulkResponse:
        """Look at a job."""
        del context
        return bulk_pb2.GetBulkResponse(job=await self._bulk.get(request.job_id, _left_s()))

    async def CancelBulk(
        self, request: bulk_pb2.CancelBulkRequest, context: object
    ) -> bulk_pb2.CancelBulkResponse:
        """End a job."""
        del context
        return bulk_pb2.CancelBulkResponse(job=await self._bulk.cancel(request.job_id, _left_s()))

    async def ForgetBulk(
        self, request: bulk_pb2.ForgetBulkRequest, context: object
    ) -> bulk_pb2.ForgetBulkResponse:
        """Delete what is left of a job."""
        del context
        await self._bulk.forget(request.job_id, _left_s())
        return bulk_pb2.ForgetBulkResponse()


def _left_s() -> float:
    call = calls.current()
    return _LEFT_S if call is None else call.time_left()
