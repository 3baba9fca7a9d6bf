"""A router on a real grpc.aio server that answers what a test tells it to."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from services.chassis.errors import ServiceError, to_status
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import inference_pb2, tensor_pb2
from twinpath.router.v1 import router_pb2, router_pb2_grpc

Script = list[ServiceError | router_pb2.InferResponse]


def decision(decision_id: str = "d1", progression: float = 152.5) -> router_pb2.InferResponse:
    """Return a reply as a router gives it."""
    return router_pb2.InferResponse(
        decision_id=decision_id,
        trace_id="0" * 31 + "1",
        outputs=[
            tensor_pb2.Tensor(
                name="progression",
                datatype=tensor_pb2.DATATYPE_FP32,
                shape=[1, 1],
                raw=struct.pack("<f", progression),
            )
        ],
        answered_by=decision_pb2.CandidateRef(
            id="large",
            model="diabetes_large",
            version="1",
            path=context_pb2.PATH_REMOTE,
            provider="standin",
            region="eu",
        ),
        cost=decision_pb2.Cost(
            currency_code="USD", nanos=2_000_000, basis=decision_pb2.COST_BASIS_REPORTED
        ),
        latency_us=4200,
    )


def chunk(text: str) -> router_pb2.InferStreamResponse:
    """Return one part of a streamed text."""
    raw = text.encode()
    tensor = tensor_pb2.Tensor(
        name="text_output",
        datatype=tensor_pb2.DATATYPE_BYTES,
        shape=[1],
        raw=struct.pack("<I", len(raw)) + raw,
    )
    return router_pb2.InferStreamResponse(chunk=inference_pb2.InferChunk(outputs=[tensor]))


def final() -> router_pb2.InferStreamResponse:
    """Return a stream's last message."""
    return router_pb2.InferStreamResponse(final=decision())


async def fail(context: Any, error: ServiceError) -> None:
    """End a call as the mesh does."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


class FakeRouter(router_pb2_grpc.RouterServicer):
    """Answers from `script`, one entry a call; the last one again and again.

    `stream` gives the messages of InferStream; an error among them ends the call.
    """

    def __init__(self) -> None:
        self.script: Script = [decision()]
        self.stream: list[Any] = [chunk("a "), chunk("note"), final()]
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.time_left: list[float] = []
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()
        self.hang = False

    def _note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_left.append(context.time_remaining())
        self.begun.set()

    async def _next(self, context: Any) -> router_pb2.InferResponse:
        if self.hang:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        entry = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(entry, ServiceError):
            await fail(context, entry)
        assert isinstance(entry, router_pb2.InferResponse)
        return entry

    async def Infer(self, request: Any, context: Any) -> Any:
        """See the class."""
        self._note(request, context)
        return await self._next(context)

    async def InferStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """See the class."""
        self._note(request, context)
        try:
            for entry in list(self.stream):
                if isinstance(entry, ServiceError):
                    if self.stream[0] is entry and len(self.stream) > 1:
                        self.stream.pop(0)  # fails once, before the first chunk
                    await fail(context, entry)
                elif entry == "hang":
                    await asyncio.sleep(60)
                else:
                    yield entry
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def BatchInfer(self, request: Any, context: Any) -> Any:
        """Answer each item from the script; errors stand in the items."""
        self._note(request, context)
        results = []
        for item in request.items:
            entry = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if isinstance(entry, ServiceError):
                results.append(router_pb2.BatchResult(id=item.id, status=to_status(entry)))
            else:
                results.append(router_pb2.BatchResult(id=item.id, response=entry))
        return router_pb2.BatchInferResponse(results=results)

    async def Explain(self, request: Any, context: Any) -> Any:
        """Give a plan of two candidates, one of them refused."""
        self._note(request, context)
        small = decision_pb2.CandidateRef(id="small", path=context_pb2.PATH_LOCAL)
        large = decision_pb2.CandidateRef(id="large", path=context_pb2.PATH_REMOTE)
        entries = [
            decision_pb2.PlanEntry(
                candidate=large, refusals=[decision_pb2.Refusal(rule="restricted_stays")]
            ),
            decision_pb2.PlanEntry(candidate=small, rank=1),
        ]
        return router_pb2.ExplainResponse(plan=decision_pb2.Plan(entries=entries))


@contextlib.asynccontextmanager
async def serving(router: FakeRouter, credentials: Any = None) -> AsyncIterator[str]:
    """Serve a router on a free port of 127.0.0.1."""
    server = grpc.aio.server()
    router_pb2_grpc.add_RouterServicer_to_server(router, server)
    port = (
        server.add_secure_port("127.0.0.1:0", credentials)
        if credentials is not None
        else server.add_insecure_port("127.0.0.1:0")
    )
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
