"""The remote path's `inference.v1.Inference`: one attempt for each item, metered and traced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from services.chassis import call as calls
from services.chassis.errors import InternalError, ServiceError, to_status
from services.remote import meters, tracing
from services.remote.bulk import takes_batches
from services.remote.catalog import describe
from services.remote.door import Door
from services.remote.provider import Adapter, Answer, AnswerStream, Ask, Tensors
from services.remote.vendors import Vendors, model_unknown
from twinpath import telemetry as names
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

log = logging.getLogger(__name__)
Message = inference_pb2.InferStreamResponse


class RemoteInference(inference_pb2_grpc.InferenceServicer):
    """See inference.proto. Knows nothing of any vendor's protocol.

    Args:
        vendors: The vendors of the catalog.
        door: Admits items.
    """

    def __init__(self, vendors: Vendors, door: Door) -> None:
        self._vendors = vendors
        self._door = door

    async def Infer(
        self, request: inference_pb2.InferRequest, context: object
    ) -> inference_pb2.InferResponse:
        """Run the items at the same time; each one succeeds or fails alone."""
        del context
        if len(request.items) == 1:  # as the router asks; a task of its own costs time
            results = [await self._item(request.items[0])]
        else:
            results = await asyncio.gather(*(self._item(item) for item in request.items))
        return inference_pb2.InferResponse(results=results)

    async def InferStream(
        self, request: inference_pb2.InferStreamRequest, context: object
    ) -> AsyncIterator[inference_pb2.InferStreamResponse]:
        """Pass the vendor's chunks on as they come; then exactly one final message.

        A model that can't be streamed answers in one chunk. When the caller leaves, the vendor's
        connection is closed. A stream that was cut ends with what it took and an error, without a
        final message.
        """
        del context
        item = request.item
        final = inference_pb2.InferResult(id=item.context.id)
        answers = self._stream(item, final)
        try:
            async with contextlib.aclosing(answers):
                async for outputs in answers:
                    yield Message(chunk=inference_pb2.InferChunk(outputs=outputs))
        except ServiceError as error:
            # The call's own error has no place for what it took, and every attempt is metered.
            final.status.CopyFrom(to_status(error))
            yield Message(failed=final)
            raise
        yield Message(final=final)

    async def _stream(
        self, item: inference_pb2.InferItem, final: inference_pb2.InferResult
    ) -> AsyncGenerator[Tensors, None]:
        """Yield the chunks of one attempt; fill in how it ended."""
        metering = final.metering
        start = time.perf_counter()
        with self._attempt(item, metering) as headers:
            admitted = await self._door.admit(item, _left_s(item), headers)
            try:
                answers = _answers(admitted.vendor.adapter, admitted.ask, metering)
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        if isinstance(answer, Answer):
                            final.finish_reason = answer.finish_reason
                            continue
                        if not metering.first_chunk_us:
                            metering.first_chunk_us = _us_since(start)
                        yield answer
            finally:
                self._door.settle(admitted, metering)
            version = metering.reported_version
            self._vendors.reported(item.provider, admitted.ask.model, version)

    async def Describe(
        self, request: inference_pb2.DescribeRequest, context: object
    ) -> inference_pb2.DescribeResponse:
        """Return the catalog's models; ready while their vendor answers probes."""
        del context
        found = []
        for vendor in self._vendors.all():
            for model in vendor.provider.models:
                if request.model in ("", model.name) and request.version in ("", model.version):
                    described = describe(vendor.provider, model)
                    described.streaming = vendor.adapter.streams(model)
                    described.bulk = takes_batches(vendor.adapter)
                    described.state = (
                        inference_pb2.MODEL_STATE_UNAVAILABLE
                        if vendor.problem
                        else inference_pb2.MODEL_STATE_READY
                    )
                    described.state_reason = vendor.problem
                    found.append(described)
        if not found and request.model:
            raise model_unknown(request.model, request.version)
        found.sort(key=lambda model: (model.name, model.version, model.provider))
        return inference_pb2.DescribeResponse(models=found)

    async def _item(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        result = inference_pb2.InferResult(id=item.context.id)
        try:
            with self._attempt(item, result.metering) as headers:
                admitted = await self._door.admit(item, _left_s(item), headers)
                try:
                    answer = await admitted.vendor.adapter.infer(admitted.ask, result.metering)
                finally:
                    self._door.settle(admitted, result.metering)
                version = result.metering.reported_version
                self._vendors.reported(item.provider, admitted.ask.model, version)
                result.outputs.extend(answer.outputs)
                result.finish_reason = answer.finish_reason
        except ServiceError as error:
            result.status.CopyFrom(to_status(error))
        return result

    @contextlib.contextmanager
    def _attempt(
        self, item: inference_pb2.InferItem, metering: inference_pb2.Metering
    ) -> Iterator[dict[str, str]]:
        """Trace, time and count one attempt, however it ends. Gives the headers of its trace.

        Raises:
            ServiceError: What ended it; anything unexpected as InternalError.
        """
        start = time.perf_counter()
        reason = "CANCELLED"  # unless one of the other ends is reached
        with tracing.attempt(item) as (span, headers):
            try:
                yield headers
                reason = "OK"
            except ServiceError as error:
                reason = error.reason
                tracing.failed(span, reason)
                raise
            except Exception:
                reason = "INTERNAL"
                log.exception("unexpected error")
                tracing.failed(span, reason)
                raise InternalError(reason, "the remote path failed; its log says how") from None
            finally:
                metering.latency_us = _us_since(start)
                span.set_attribute(names.MODEL_VERSION, metering.reported_version)
                if metering.HasField("cost"):
                    span.set_attribute(names.COST_NANOS, metering.cost.nanos)
                _count(item, metering, reason)


async def _answers(adapter: Adapter, ask: Ask, metering: inference_pb2.Metering) -> AnswerStream:
    """Yield chunks and the answer; one chunk where the vendor does not stream the model."""
    if not adapter.streams(ask.model):
        answer = await adapter.infer(ask, metering)
        if answer.outputs:
            yield answer.outputs
        yield answer
        return
    async with contextlib.aclosing(adapter.stream(ask, metering)) as stream:
        async for answer_or_chunk in stream:
            yield answer_or_chunk


def _left_s(item: inference_pb2.InferItem) -> float:
    call = calls.current()
    left = call.time_left() if call is not None else float("inf")
    return min(left, item.context.time_left_us / 1e6) if item.context.time_left_us else left


def _us_since(start: float) -> int:
    return max(1, int((time.perf_counter() - start) * 1e6))


def _count(item: inference_pb2.InferItem, metering: inference_pb2.Metering, reason: str) -> None:
    """Count an item. Names that the catalog does not know would make labels without end."""
    if not metering.sent:
        meters.attempts("", "", reason).inc()
        return
    counters = meters.of(item.provider, item.model)
    meters.attempts(item.provider, item.model, reason).inc()
    counters.duration.observe(metering.latency_us / 1e6)
    counters.bytes_out.inc(metering.bytes_out)
    counters.bytes_in.inc(metering.bytes_in)
    if metering.HasField("cost"):
        cost = metering.cost
        meters.cost(item.provider, item.model, cost.basis).inc(cost.nanos)
