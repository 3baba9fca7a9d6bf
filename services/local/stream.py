"""The way of one streamed item."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError, to_status
from services.local import tracing
from services.local.exchange import Answer, Metadata
from services.local.fleet import Fleet
from services.local.item import Items
from services.local.prepare import Prepared, check_output
from twinpath.inference.v1 import inference_pb2

Message = inference_pb2.InferStreamResponse


class Streams:
    """Runs streamed items: chunks as they come, then one message that says what it took."""

    def __init__(self, items: Items, fleet: Fleet, clock: Clock) -> None:
        self._items = items
        self._fleet = fleet
        self._clock = clock

    async def run(
        self, item: inference_pb2.InferItem, deadline: float
    ) -> AsyncIterator[inference_pb2.InferStreamResponse]:
        """Yield the chunks and the end. A model that doesn't stream answers in one chunk.

        Closing the iterator cancels Triton's work.

        Raises:
            ServiceError: after a `failed` message instead of the final one.
        """
        started = self._clock.monotonic()
        final = inference_pb2.InferResult(id=item.context.id)
        metering = final.metering
        prepared: Prepared | None = None
        last: Answer | None = None
        bytes_in = 0
        reason = "CANCELLED"  # unless one of the other ends is reached
        failure: ServiceError | None = None
        try:
            prepared = await self._items.prepare(item, deadline)
            async with self._items.gate(prepared, deadline):
                metering.sent = True
                home = tracing.home(item, first=True)
                with tracing.call_of_triton(home, prepared.known, item.decision_id, 1) as metadata:
                    async for answer in self._answers(prepared, deadline, metadata):
                        last = answer
                        bytes_in += answer.bytes_in
                        if not metering.first_chunk_us:
                            first = self._clock.monotonic() - started
                            metering.first_chunk_us = max(1, int(first * 1e6))
                        yield Message(chunk=inference_pb2.InferChunk(outputs=answer.outputs))
            if last is not None:
                await self._items.know_usage(prepared.known)
            reason = ""
        except ServiceError as error:
            failure = error
            reason = error.reason
        finally:
            known = prepared.known if prepared is not None else None
            if prepared is not None:
                self._items.traffic.leave(prepared.key)
                if last is not None:
                    self._items.meter(metering, prepared, last, bytes_in)
            self._items.finish(metering, known, started, reason)
        if failure is not None:
            # The call's own error has no place for what it took, and every attempt is metered.
            final.status.CopyFrom(to_status(failure))
            yield Message(failed=final)
            raise failure
        yield Message(final=final)

    async def _answers(
        self, prepared: Prepared, deadline: float, metadata: Metadata
    ) -> AsyncIterator[Answer]:
        spec = prepared.spec
        if not spec.decoupled:
            answer = await self._fleet.infer(prepared.ask(), deadline, metadata)
            check_output(spec, answer.outputs, prepared.rows)
            yield answer
            return
        async with self._fleet.stream(prepared.ask(), deadline, metadata) as answers:
            async for answer in answers:
                check_output(spec, answer.outputs, None)
                yield answer
