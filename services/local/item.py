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
from services.local.pace import Pace
from services.local.prepare import Prepared, check_output, prepare
from services.local.traffic import Traffic
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
        traffic: Traffic | None = None,
    ) -> None:
        self.traffic = traffic or Traffic()
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
        try:
            await self._run(works)
        finally:
            for work in works:
                if work.prepared is not None:
                    self.traffic.leave(work.prepared.key)
        return [work.result for work in works]

    async def _run(self, works: list[_Work]) -> None:
        unknown = [work for work in works if not self._check(work)]
        if unknown:  # only they have to wait for a look at Triton
            await asyncio.gather(*(self._look(work) for work in unknown))
        alone: list[_Work] = []
        kin: list[tuple[_Work, Prepared]] = []
        for work in works:
            if work.prepared is None:
                self._end(work)
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

    async def prepare(self, item: inference_pb2.InferItem, deadline: float) -> Prepared:
        """Check an item that is to be streamed; raises as `find` and `prepare` do.

        The caller tells `traffic` when the item has left.
        """
        known = await self._fleet.models.find(item.model, item.version)
        prepared = prepare(item, known, deadline, self._clock.monotonic(), streamed=True)
        self.traffic.enter(prepared.key)
        return prepared

    def _check(self, work: _Work, known: Known | None = None) -> bool:
        """Check an item; False: its model is not known to serve."""
        item = work.item
        try:
            known = known or self._fleet.models.peek(item.model, item.version)
            if known is None:
                return False
            now = self._clock.monotonic()
            work.prepared = prepare(item, known, work.deadline, now, streamed=False)
            self.traffic.enter(work.prepared.key)
        except Exception as error:  # noqa: BLE001 - an item fails alone, whatever it is
            work.failed(error)
        return True

    async def _look(self, work: _Work) -> None:
        """Look for an item's model, and check the item."""
        try:
            self._check(work, await self._fleet.models.find(work.item.model, work.item.version))
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
        self._end(work)

    async def _together(self, works: list[_Work]) -> None:
        """Ask for several items with one request; each waits until its own deadline only."""
        shared = asyncio.create_task(self._ask_together(works))
        waiting = dict(enumerate(works))
        try:
            while not shared.done() and waiting:
                now = self._clock.monotonic()
                for index in [n for n, work in waiting.items() if work.deadline <= now]:
                    work = waiting.pop(index)
                    work.failed(
                        DeadlineExceededError("TRITON_TIMEOUT", "Triton did not answer in time")
                    )
                    self._end(work)
                if waiting:
                    first = min(work.deadline for work in waiting.values())
                    await asyncio.wait({shared}, timeout=first - now)
            again = [w for n, w in waiting.items() if not await self._part(w, n, shared)]
        finally:
            shared.cancel()  # done, or nobody waits for it any more
        await asyncio.gather(*(self._alone(work) for work in again))

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
        """Take an item's part of what is done; False: it is to be asked for alone."""
        prepared = work.prepared
        assert prepared is not None
        try:
            answer = shared.result()[index]
            work.result.outputs.extend(answer.outputs)
            await self.meter(work.result.metering, prepared, answer)
        except Exception as error:  # noqa: BLE001 - an item fails alone, whatever it is
            if isinstance(error, ServiceError) and error.code in _BLAME:
                return False
            work.failed(error)
        self._end(work)
        return True

    def _end(self, work: _Work) -> None:
        known = work.prepared.known if work.prepared is not None else None
        self.finish(work.result.metering, known, work.started, work.reason)

    def gate(self, prepared: Prepared, deadline: float) -> Pass:
        """Return the context in which a model may be asked: a turn at its gate."""
        name = prepared.spec.name
        gate = self._gates.get(name)
        if gate is None:
            limit, waiting = self._limits
            # A stream takes as long as its text is long: that says nothing about a queue.
            pace = None if prepared.spec.decoupled else Pace(limit)
            gate = Gate(limit, waiting, pace=pace, now=self._clock.monotonic)
            self._gates[name] = gate
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
