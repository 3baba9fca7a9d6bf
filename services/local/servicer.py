"""The inference contract over Triton."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio

from services.chassis import call as calls
from services.chassis.clock import Clock
from services.chassis.errors import NotFoundError
from services.local.describe import description
from services.local.item import Items
from services.local.models import Models
from services.local.stream import Streams
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

Context = grpc.aio.ServicerContext

_DEFAULT_S = 10.0  # for calls that come past the chassis: tests
# The last part of the call's time is ours, to say what happened to each item: without it a slow
# item would take its neighbours' results along.
_MARGIN_S = 0.025
_MARGIN_SHARE = 0.1


class LocalServicer(inference_pb2_grpc.InferenceServicer):
    """Serves twinpath.inference.v1.Inference."""

    def __init__(self, items: Items, streams: Streams, models: Models, clock: Clock) -> None:
        self._items = items
        self._streams = streams
        self._models = models
        self._clock = clock

    async def Infer(
        self, request: inference_pb2.InferRequest, context: Context
    ) -> inference_pb2.InferResponse:
        """Run the items beside each other; each one has its own status."""
        now, until = self._until()
        items = []
        for item in request.items:
            own = item.context.time_left_us
            items.append((item, min(until, now + own / 1e6) if own else until))
        return inference_pb2.InferResponse(results=await self._items.run(items))

    async def InferStream(
        self, request: inference_pb2.InferStreamRequest, context: Context
    ) -> AsyncIterator[inference_pb2.InferStreamResponse]:
        """Run one item and pass its output on as it comes."""
        now, until = self._until()
        own = request.item.context.time_left_us
        deadline = min(until, now + own / 1e6) if own else until
        async for message in self._streams.run(request.item, deadline):
            yield message

    async def Describe(
        self, request: inference_pb2.DescribeRequest, context: Context
    ) -> inference_pb2.DescribeResponse:
        """Say what is known about the models, from the last look at Triton."""
        await self._models.refresh()
        models = [
            description(known, serving=self._models.serving(known.name) == known.version)
            for known in self._models.all()
            if request.model in ("", known.name) and request.version in ("", known.version)
        ]
        if not models and request.model:
            about = {"model": request.model}
            if request.version:
                about["version"] = request.version
            raise NotFoundError("MODEL_UNKNOWN", "there is no such model here", metadata=about)
        return inference_pb2.DescribeResponse(models=models)

    def _until(self) -> tuple[float, float]:
        """Return now, and until when the call's items may take, on the clock's monotonic scale."""
        now = self._clock.monotonic()
        call = calls.current()
        left = _DEFAULT_S if call is None else call.deadline - now
        return now, now + left - min(_MARGIN_S, _MARGIN_SHARE * left)
