"""The way of items: checked, alone or together to Triton, checked again, metered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Sequence

import grpc

from services.chassis.clock import Clock
from services.chassis.errors import DeadlineExceededError, ServiceError, to_status
from services.local import merge, metrics, tracing
from services.local.exchange import Answer
from services.local.fleet import Fleet
from services.local.lanes import Lanes, Road
from services.local.limits import Gate, Pass
from services.local.models import Known
from services.local.pace import Pace
from services.local.prepare import BATCH_RANK, Prepared, ask, check_output, prepare
from services.local.traffic import Traffic
from services.local.usage import Price
from twinpath.common.v1 import decision_pb2
from twinpath.inference.v1 import inference_pb2

log = logging.getLogger(__name__)

# After these a batch's items are asked again one by one: one of them may be to blame.
_BLAME = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL})


class _Call:
    """One caller's items: how many have not ended, and who waits for that."""

    __slots__ = ("done", "left", "started")

    def __init__(self, started: float, items: int) -> None:
        self.started = started
        self.left = items
        self.done: asyncio.Future[None] | None = None

    def ended(self) -> None:
        self.left -= 1
        if not self.left and self.done is not None and not self.done.done():
            self.done.set_result(None)


class _Work:
    """One item on its way."""

    __slots__ = ("call", "deadline", "ended", "home", "item", "prepared", "reason", "result",
                 "rows", "sampled")  # fmt: skip

    def __init__(
        self, item: inference_pb2.InferItem, deadline: float, call: _Call, *, first: bool
    ) -> None:
        self.item = item
        self.deadline = deadline
        self.call = call
        self.result = inference_pb2.InferResult(id=item.context.id)
        self.prepared: Prepared | None = None
        self.rows = 1
        self.home = tracing.home(item, first=first)
        self.sampled = self.home is not None
        self.reason = ""
        self.ended = False

    def failed(self, error: BaseException) -> None:
        """Note why; what is not a ServiceError is our fault, and stands in the log."""
        if not isinstance(error, ServiceError):
            log.error("unexpected error", extra={"model": self.item.model}, exc_info=error)
        self.reason = error.reason if isinstance(error, ServiceError) else "INTERNAL"
        self.result.ClearField("outputs")
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
        batch_requests: int = 2,
        traffic: Traffic | None = None,
    ) -> None:
        self.traffic = traffic or Traffic()
        self._fleet = fleet
        self._clock = clock
        self._price = price
        self._limits = (concurrency, waiting)
        self._gates: dict[str, Gate] = {}
        self._batch_gate = Gate(batch_requests, batch_requests + waiting)
        self._lanes: Lanes[_Work] = Lanes(self._send)

    async def run(
        self, items: Sequence[tuple[inference_pb2.InferItem, float]]
    ) -> list[inference_pb2.InferResult]:
        """Return what became of the items, in their order; raises for no item.

        Args:
            items: Each with its deadline, on the clock's monotonic scale.
        """
        call = _Call(self._clock.monotonic(), len(items))
        works = [
            _Work(item, deadline, call, first=not index)
            for index, (item, deadline) in enumerate(items)
        ]
        try:
            await self._run(call, works)
        finally:
            gone = False
            for work in works:
                if not work.ended:  # our caller left
                    work.ended = gone = True
                if work.prepared is not None:
                    self.traffic.leave(work.prepared.key)
            if gone:
                self._lanes.gone()
        return [work.result for work in works]

    async def _run(self, call: _Call, works: list[_Work]) -> None:
        unknown = [work for work in works if not self._check(work)]
        if unknown:  # only they have to wait for a look at Triton
            await asyncio.gather(*(self._look(work) for work in unknown))
        alone: list[_Work] = []
        kin: dict[Hashable, list[_Work]] = {}
        wrong: list[_Work] = []
        for work in works:
            if work.prepared is None:
                wrong.append(work)
            elif (key := work.prepared.kin) is None:
                alone.append(work)
            else:
                kin.setdefault(key, []).append(work)
        self._end(wrong)
        roads = [(_road(key, found), found) for key, found in kin.items()]
        if not alone and len(roads) == 1:
            ((road, found),) = roads
            if await self._lanes.go(road, found):
                return
        else:
            for road, found in roads:
                self._lanes.wait(road, found)
        if len(alone) == 1 and not roads:
            await self._send(alone)
        elif alone:
            await asyncio.gather(*(self._send([work]) for work in alone))
        await self._wait(call, works)

    async def _wait(self, call: _Call, works: Sequence[_Work]) -> None:
        """Wait until the items have ended, or the last one's time is up."""
        if not call.left:
            return
        loop = asyncio.get_running_loop()
        call.done = loop.create_future()
        left = max(work.deadline for work in works) - self._clock.monotonic()
        timer = loop.call_later(max(0.0, left), self._late, works)
        try:
            await call.done
        finally:
            timer.cancel()

    def _late(self, works: Sequence[_Work]) -> None:
        """Answer those that wait at their deadline; a request that serves nobody else ends."""
        late = [work for work in works if not work.ended]
        for work in late:
            work.failed(_too_late(sent=work.result.metering.sent))
        self._end(late)
        self._lanes.gone()

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
            work.rows = work.prepared.rows
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

    async def _send(self, works: list[_Work]) -> None:
        """Ask for kin with one request, and end them."""
        now = self._clock.monotonic()
        late = [work for work in works if work.deadline <= now]
        if late:
            for work in late:
                work.failed(_too_late(sent=False))
            self._end(late)
            works = [work for work in works if work.deadline > now]
        if not works:
            return
        try:
            await self._ask(works)
        except Exception as error:  # noqa: BLE001 - an item fails alone, whatever it is
            if len(works) > 1 and isinstance(error, ServiceError) and error.code in _BLAME:
                again = [work for work in works if not work.ended]
                await asyncio.gather(*(self._send([work]) for work in again))
                return
            for work in works:
                if not work.ended:
                    work.failed(error)
        self._end(works)

    async def _ask(self, works: list[_Work]) -> None:
        """Ask, check, and write each item's part and metering. Raises what befell them all.

        Batch jobs take turns, whatever their models: Triton's instances share one machine, and
        what all of them together may take of it at once is little.
        """
        prepared = [work.prepared for work in works if work.prepared is not None]
        deadline = max([p.deadline for p in prepared])
        if prepared[0].rank < BATCH_RANK:
            await self._ask_now(works, prepared, deadline)
            return
        left = deadline - self._clock.monotonic()
        async with self._batch_gate.pass_through(0, left):
            await self._ask_now(works, prepared, deadline)

    async def _ask_now(self, works: list[_Work], prepared: list[Prepared], deadline: float) -> None:
        first = prepared[0]
        rows = [p.rows for p in prepared]
        async with self.gate(first, deadline):
            for work in works:
                work.result.metering.sent = True
            leader = works[0]
            decision = leader.item.decision_id
            with tracing.call_of_triton(leader.home, first.known, decision, len(works)) as headers:
                answer = await self._fleet.infer(ask(prepared), deadline, headers)
        check_output(first.spec, answer.outputs, sum(rows))
        if len(works) > 1:
            metrics.BATCHED.labels(first.spec.name).observe(len(works))
        await self.know_usage(first.known)
        now = self._clock.monotonic()
        waiting = [work for work in works if not work.ended]
        if len(waiting) < len(works):  # some were answered at their deadline
            spare = inference_pb2.InferResult()
            results = [spare if work.ended else work.result for work in works]
        else:
            results = [work.result for work in works]
        merge.share(answer.outputs, rows, results)
        bills: dict[int, inference_pb2.Metering] = {}
        for work, part in zip(works, rows, strict=True):
            if work.ended:
                continue
            bill = bills.get(part)
            if bill is None:
                bill = bills[part] = self._bill(first.known, answer, part, sum(rows))
            work.result.metering.CopyFrom(bill)
            if work.deadline < now:
                work.failed(_too_late(sent=True))

    def _end(self, works: Sequence[_Work]) -> None:
        """Write and count how items ended."""
        now = self._clock.monotonic()
        same: dict[tuple[int, str, float, str], tuple[Known | None, int]] = {}
        for work in works:
            if work.ended:
                continue
            work.ended = True
            known = None if work.prepared is None else work.prepared.known
            started = work.call.started
            metering = work.result.metering
            metering.latency_us = max(1, int((now - started) * 1e6))
            if known is not None and not metering.artifact_digest:
                metering.artifact_digest = known.artifact.digest
            key = (id(known), work.reason, started, "")
            _, count = same.get(key, (None, 0))
            same[key] = (known, count + 1)
            work.call.ended()
        for (_, reason, started, _), (known, count) in same.items():
            _note(known, reason, now - started, count)

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

    async def know_usage(self, known: Known) -> None:
        """See to it that a model's usage is known, once it has answered."""
        if known.meter.usage is None:
            # The first answer of a model: its statistics are there now, and were not before.
            await self._fleet.models.refresh_anew()

    def _bill(
        self, known: Known, answer: Answer, rows: int, of_rows: int
    ) -> inference_pb2.Metering:
        """Return what an item with so many rows of an answer's took."""
        metering = inference_pb2.Metering(
            sent=True,
            reported_version=answer.version,
            artifact_digest=known.artifact.digest,
            bytes_out=answer.bytes_out * rows // of_rows,
            bytes_in=answer.bytes_in * rows // of_rows,
        )
        usage = known.meter.usage
        if usage is None:
            return metering
        metering.queue_us = usage.queue_us
        metering.compute_us = usage.compute_us
        if self._price.usd_per_hour:
            cost = metering.cost
            cost.currency_code = "USD"
            cost.nanos = self._price.nanos(usage, rows)
            cost.basis = decision_pb2.COST_BASIS_MEASURED
        return metering

    def meter(
        self,
        metering: inference_pb2.Metering,
        prepared: Prepared,
        last: Answer,
        bytes_in: int,
    ) -> None:
        """Write what an answer took that came in chunks, `bytes_in` all together."""
        first_chunk_us = metering.first_chunk_us
        metering.CopyFrom(self._bill(prepared.known, last, prepared.rows, prepared.rows))
        metering.first_chunk_us = first_chunk_us
        metering.bytes_in = bytes_in

    def finish(
        self,
        metering: inference_pb2.Metering,
        known: Known | None,
        started: float,
        reason: str,
    ) -> None:
        """Write and count how a stream ended; the reason of a success is empty."""
        seconds = self._clock.monotonic() - started
        metering.latency_us = max(1, int(seconds * 1e6))
        if known is not None:
            metering.artifact_digest = known.artifact.digest
        _note(known, reason, seconds, 1)


def _note(known: Known | None, reason: str, seconds: float, items: int) -> None:
    # A caller's invented names must not become label values.
    name, version = ("", "") if known is None else (known.name, known.version)
    metrics.ENDED.note(name, version, reason, seconds, items)


def _road(kin: Hashable, works: Sequence[_Work]) -> Road:
    prepared = works[0].prepared
    assert prepared is not None
    spec = prepared.spec
    return Road(kin, spec.instances * prepared.known.replicas, spec.max_batch_size)


def _too_late(*, sent: bool) -> DeadlineExceededError:
    if sent:
        return DeadlineExceededError("TRITON_TIMEOUT", "Triton did not answer in time")
    return DeadlineExceededError("MODEL_QUEUE_TIMEOUT", "the time was up in the model's queue")
