"""The way of items: checked, alone or together to Triton, checked again, metered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from services.chassis.clock import Clock
from services.chassis.errors import DeadlineExceededError, ServiceError, to_status
from services.local import merge, metrics, tracing
from services.local.fleet import Fleet
from services.local.limits import Gate, Pass
from services.local.models import Known
from services.local.prepare import Prepared, check_output, prepare
from services.local.triton import Answer
from services.local.usage import Price
from twinpath.common.v1 import decision_pb2
from twinpath.inference.v1 import inference_pb2

log = logging.getLogger(__name__)

# After these a batch's items are asked again one by one: one of them may be to blame.
_BLAME = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL})


@dataclass
class _Work:
    """One item on its way."""

    item: inference_pb2.InferItem
    deadline: float
    started: float
    result: inference_pb2.InferResult = field(init=False)
    prepared: Prepared | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        self.result = inference_pb2.InferResult(id=self.item.context.id)

    def failed(self, error: BaseException) -> None:
        """Note why; what is not a ServiceError is our fault, and stands in the log."""
        if not isinstance(error, ServiceError):
            log.error("unexpected error", extra={"model": self.item.model}, exc_info=error)
        self.reason = error.reason if isinstance(error, ServiceError) else "INTERNAL"
        self.result.status.CopyFrom(to_status(error))


class Items:
    """Runs items. One object serves all calls."""

    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        price: Price,
        *,
        concurrency: int = 64,
        waiting: int = 512,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._price = price
        self._limits = (concurrency, waiting)
        self._gates: dict[str, Gate] = {}

    async def run(
        self, items: Sequence[tuple[inference_pb2.InferItem, float]]
    ) -> list[inference_pb2.InferResult]:
        """Return what became of the items, in their order; raises for no item.

        Args:
            items: Each with its deadline, on the clock's monotonic scale.
        """
        now = self._clock.monotonic()
        works = [_Work(item, deadline, now) for item, deadline in items]
        if len(works) == 1:
            await self._check(works[0])
        else:
            await asyncio.gather(*(self._check(work) for work in works))
        alone: list[_Work] = []
        kin: list[tuple[_Work, Prepared]] = []
        for work in works:
            if work.prepared is None:
                self.finish(work.result.metering, None, work.started, work.reason)
            elif len(works) == 1 or tracing.sampled(work.item.context.trace):
                alone.append(work)  # so that Triton's own spans join the right trace
            else:
                kin.append((work, work.prepared))
        tasks = [self._alone(work) for work in alone]
        for batch in merge.batches(prepared for _, prepared in kin):
            members = [kin[index][0] for index in batch]
            tasks.append(self._alone(members[0]) if len(members) == 1 else self._together(members))
        if len(tasks) == 1:
            await tasks[0]
        else:
            await asyncio.gather(*tasks)
        return [work.result for work in works]

    async def prepare(self, item: inference_pb2.InferItem, deadline: float) -> Prepared:
        """Check an item that is to be streamed; raises as `prepare.prepare` does."""
        return await prepare(item, deadline, self._fleet.models, self._clock, streamed=True)

    async def _check(self, work: _Work) -> None:
        try:
            work.prepared = await prepare(
                work.item, work.deadline, self._fleet.models, self._clock, streamed=False
            )
        except Exception as error:  # noqa: BLE001 - an item fails alone, whatever it is
            work.failed(error)

    async def _alone(self, work: _Work) -> None:
        """Ask for one item."""
        prepared = work.prepared
        assert prepared is not None
        metering = work.result.metering
        try:
            async with self.gate(prepared, prepared.deadline):
                metering.sent = True
                with tracing.call_of_triton(work.item, prepared.known) as headers:
                    answer = await self._fleet.infer(prepared.ask, prepared.deadline, headers)
            check_output(prepared.spec, answer.outputs, prepared.rows)
            work.result.outputs.extend(answer.outputs)
            await self.meter(metering, prepared, answer)
        except Exception as error:  # noqa: BLE001 - an item fails alone, whatever it is
            work.failed(error)
        self.finish(metering, prepared.known, work.started, work.reason)

    async def _together(self, works: list[_Work]) -> None:
        """Ask for several items with one request; each waits until its own deadline only."""
        shared = asyncio.create_task(self._ask_together(works))
        try:
            again = await asyncio.gather(
                *(self._part(work, index, shared) for index, work in enumerate(works))
            )
        finally:
            shared.cancel()  # done, or nobody waits for it any more
        blamed = [work for work, alone in zip(works, again, strict=True) if alone]
        await asyncio.gather(*(self._alone(work) for work in blamed))

    async def _ask_together(self, works: list[_Work]) -> list[Answer]:
        """Return each item's answer, which is its part of the one that Triton gives."""
        prepared = [work.prepared for work in works if work.prepared is not None]
        first = prepared[0]
        deadline = max(p.deadline for p in prepared)
        rows = [p.rows for p in prepared]
        total = sum(rows)
        async with self.gate(first, deadline):
            for work in works:
                work.result.metering.sent = True
            items = [work.item for work in works]
            with tracing.shared_call(items, first.known) as headers:
                answer = await self._fleet.infer(merge.join(prepared), deadline, headers)
        check_output(first.spec, answer.outputs, total)
        metrics.BATCHED.labels(first.spec.name).observe(len(works))
        parts = merge.cut(answer.outputs, rows)
        return [
            Answer(
                answer.version,
                part,
                answer.bytes_out * count // total,
                answer.bytes_in * count // total,
            )
            for part, count in zip(parts, rows, strict=True)
        ]

    async def _part(self, work: _Work, index: int, shared: asyncio.Task[list[Answer]]) -> bool:
        """Wait for one item's part; True: it is to be asked for alone."""
        prepared = work.prepared
        assert prepared is not None
        try:
            async with asyncio.timeout(prepared.deadline - self._clock.monotonic()):
                answer = (await asyncio.shield(shared))[index]
            work.result.outputs.extend(answer.outputs)
            await self.meter(work.result.metering, prepared, answer)
        except TimeoutError:
            work.failed(DeadlineExceededError("TRITON_TIMEOUT", "Triton did not answer in time"))
        except Exception as error:  # noqa: BLE001 - an item fails alone, whatever it is
            if isinstance(error, ServiceError) and error.code in _BLAME:
                return True
            work.failed(error)
        self.finish(work.result.metering, prepared.known, work.started, work.reason)
        return False

    def gate(self, prepared: Prepared, deadline: float) -> Pass:
        """Return the context in which a model may be asked: a turn at its gate."""
        name = prepared.spec.name
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = Gate(*self._limits)
        return gate.pass_through(prepared.rank, deadline - self._clock.monotonic())

    async def meter(
        self, metering: inference_pb2.Metering, prepared: Prepared, answer: Answer
    ) -> None:
        """Write what an answer took."""
        known = prepared.known
        metering.reported_version = answer.version
        metering.bytes_out = answer.bytes_out
        metering.bytes_in = answer.bytes_in
        if known.meter.usage is None:
            # The first answer of a model: its statistics are there now, and were not before.
            await self._fleet.models.refresh()
        usage = known.meter.usage
        if usage is None:
            return
        metering.queue_us = usage.queue_us
        metering.compute_us = usage.compute_us
        if self._price.usd_per_hour:
            metering.cost.CopyFrom(
                decision_pb2.Cost(
                    currency_code="USD",
                    nanos=self._price.nanos(usage, prepared.rows),
                    basis=decision_pb2.COST_BASIS_MEASURED,
                )
            )

    def finish(
        self,
        metering: inference_pb2.Metering,
        known: Known | None,
        started: float,
        reason: str,
    ) -> None:
        """Write and count how an item ended; the reason of a success is empty."""
        seconds = self._clock.monotonic() - started
        metering.latency_us = max(1, int(seconds * 1e6))
        if known is None:  # a caller's invented names must not become label values
            metrics.ITEMS.labels("", "", reason).inc()
            return
        metering.artifact_digest = known.artifact.digest
        metrics.ITEMS.labels(known.name, known.version, reason).inc()
        metrics.SECONDS.labels(known.name).observe(seconds)
