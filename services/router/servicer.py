"""The router's gRPC face: from messages to the pipeline and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from opentelemetry import trace

from services.chassis import call as calls
from services.chassis.call import Call
from services.chassis.errors import (
    InternalError,
    NotFoundError,
)
from services.router.batch import Batches
from services.router.board import Board
from services.router.catalog import Catalog, Task
from services.router.overrides import PATH_NAMES, Overrides
from services.router.pipeline import Pipeline
from services.router.records import candidate_ref
from services.router.replay import Replays
from services.router.steps import CatalogView
from services.router.streams import Streams
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import router_pb2, router_pb2_grpc

_tracer = trace.get_tracer(__name__)


class RouterServicer(router_pb2_grpc.RouterServicer):
    """See router/v1/router.proto."""

    def __init__(
        self,
        pipeline: Pipeline,
        streams: Streams,
        board: Board,
        catalog: Callable[[], CatalogView],
        overrides: Overrides,
        replays: Replays,
        batches: Batches,
        within_quota: Callable[[Call], Awaitable[None]],
    ) -> None:
        self._pipeline = pipeline
        self._streams = streams
        self._board = board
        self._catalog = catalog
        self._overrides = overrides
        self._batches = batches
        self._within_quota = within_quota
        self._replays = replays

    async def Infer(
        self, request: router_pb2.InferRequest, context: Any
    ) -> router_pb2.InferResponse:
        """Make one decision."""
        call = _call()
        await self._within_quota(call)
        return await self._pipeline.decide(request, call)

    async def InferStream(
        self, request: router_pb2.InferStreamRequest, context: Any
    ) -> AsyncIterator[router_pb2.InferStreamResponse]:
        """Make one decision in chunks."""
        call = _call()
        await self._within_quota(call)
        async with aclosing(self._streams.decide(request.request, call)) as messages:
            async for message in messages:
                yield message

    async def BatchInfer(
        self, request: router_pb2.BatchInferRequest, context: Any
    ) -> router_pb2.BatchInferResponse:
        """Make many decisions; each fails alone."""
        results = await self._batches.run(request.items, _call())
        return router_pb2.BatchInferResponse(results=results)

    async def Explain(
        self, request: router_pb2.ExplainRequest, context: Any
    ) -> router_pb2.ExplainResponse:
        """Return the plan, and run nothing."""
        return await self._pipeline.explain(request.request, _call())

    async def Describe(
        self, request: router_pb2.DescribeRequest, context: Any
    ) -> router_pb2.DescribeResponse:
        """Return the tasks."""
        catalog: Catalog = self._catalog().catalog
        if request.task and request.task not in catalog.tasks:
            raise NotFoundError("TASK_UNKNOWN", f"there is no task {request.task!r}")
        chosen = [request.task] if request.task else sorted(catalog.tasks)
        return router_pb2.DescribeResponse(
            tasks=[self._describe(catalog.tasks[name]) for name in chosen],
            catalog_version=catalog.version,
        )

    async def OverridePath(
        self, request: router_pb2.OverridePathRequest, context: Any
    ) -> router_pb2.OverridePathResponse:
        """Drain a path, or give it its traffic back."""
        leaf = await self._overrides.override(
            request.path, request.reason, _call(), drained=request.drained
        )
        drained = [path for path, name in PATH_NAMES.items() if name in self._board.drained]
        return router_pb2.OverridePathResponse(drained=drained, leaf_index=leaf)

    async def Replay(
        self, request: router_pb2.ReplayRequest, context: Any
    ) -> router_pb2.ReplayResponse:
        """Run a recorded decision's model again, and compare."""
        return await self._replays.replay(request, _call())

    def _describe(self, task: Task) -> router_pb2.TaskDescription:
        return router_pb2.TaskDescription(
            name=task.name,
            summary=task.summary,
            feature_service=task.feature_service,
            entity=list(task.entity.keys),
            fields=list(task.fields),
            inputs=[_spec(i.name, i.datatype, i.shape) for i in task.inputs],
            outputs=[_spec(o.name, o.datatype, o.shape) for o in task.outputs],
            data_class=task.data_class_value,  # type: ignore[arg-type]
            streaming=task.streaming,
            candidates=[candidate_ref(c) for c in self._board.candidates(task)],
        )


def _spec(name: str, datatype: str, shape: list[int]) -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(
        name=name,
        datatype=tensors.datatype_value(datatype),  # type: ignore[arg-type]
        shape=shape,
    )


def _call() -> Call:
    call = calls.current()
    if call is None:
        raise InternalError("NO_CALL", "a request came in without passing the door")
    return call
