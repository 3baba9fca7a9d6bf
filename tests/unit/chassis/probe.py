"""A service for the chassis's tests: inference.v1 with handlers that a test passes in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from services.chassis import run
from services.chassis.health import Ping
from services.chassis.settings import ServiceSettings
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2

SERVICE = "twinpath.inference.v1.Inference"
INFER = f"/{SERVICE}/Infer"

Handler = Callable[[Any, Any], Awaitable[Any]]
StreamHandler = Callable[[Any, Any], AsyncIterator[Any]]


class Probe(inference_pb2_grpc.InferenceServicer):
    """Calls what the test gave; answers empty messages otherwise."""

    def __init__(
        self, infer: Handler | None = None, infer_stream: StreamHandler | None = None
    ) -> None:
        self._infer = infer
        self._infer_stream = infer_stream

    async def Infer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `build_probe`."""
        if self._infer is None:
            return inference_pb2.InferResponse()
        return await self._infer(request, context)

    async def InferStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """See `build_probe`."""
        if self._infer_stream is None:
            yield inference_pb2.InferStreamResponse()
            return
        async for message in self._infer_stream(request, context):
            yield message

    async def Describe(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Know no model."""
        return inference_pb2.DescribeResponse()


def build_probe(
    infer: Handler | None = None,
    infer_stream: StreamHandler | None = None,
    *,
    pings: Mapping[str, Ping] | None = None,
    background: Sequence[Callable[[], Awaitable[None]]] = (),
    on_close: Callable[[], None] | None = None,
) -> run.Build[ServiceSettings]:
    """Return a build function for a service that is nothing but its chassis."""

    async def build(_: ServiceSettings, stack: AsyncExitStack) -> run.Service:
        if on_close is not None:
            stack.callback(on_close)
        mount = run.Mount(
            SERVICE,
            Probe(infer, infer_stream),
            inference_pb2_grpc.add_InferenceServicer_to_server,
        )
        return run.Service([mount], pings or {}, background)

    return build


def item(item_id: str = "d-1", **context: Any) -> inference_pb2.InferItem:
    """Return an item that breaks no rule."""
    tensor = tensor_pb2.Tensor(
        name="features", datatype=tensor_pb2.DATATYPE_FP32, shape=[1, 1], raw=b"\0\0\0\0"
    )
    return inference_pb2.InferItem(
        context=context_pb2.ItemContext(id=item_id, **context),
        model="echo",
        input=tensor_pb2.ModelInput(tensors=[tensor]),
    )


def request(*ids: str) -> inference_pb2.InferRequest:
    """Return a call that breaks no rule."""
    return inference_pb2.InferRequest(items=[item(i) for i in ids or ("d-1",)])


def stream_request() -> inference_pb2.InferStreamRequest:
    """Return a streaming call that breaks no rule."""
    return inference_pb2.InferStreamRequest(item=item())
