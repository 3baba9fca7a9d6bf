"""The way of one item: time, input, model, Triton, output, metering."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from services.chassis import telemetry
from services.chassis.clock import Clock
from services.chassis.errors import (
    DataLossError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ServiceError,
    UnimplementedError,
    to_status,
)
from services.local import metrics
from services.local.fleet import Fleet
from services.local.limits import Gate
from services.local.models import Known
from services.local.triton import Answer, Ask, Metadata
from services.local.usage import Price
from twinpath import telemetry as names
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

log = logging.getLogger(__name__)
_tracer = trace.get_tracer("twinpath.local")

_RANKS = {
    context_pb2.PRIORITY_INTERACTIVE: 0,
    context_pb2.PRIORITY_UNSPECIFIED: 1,
    context_pb2.PRIORITY_NORMAL: 1,
    context_pb2.PRIORITY_BATCH: 2,
}
_LOWEST = max(_RANKS.values())


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item that may go to Triton. `rank` 0 is the most urgent."""

    known: Known
    ask: Ask
    rows: int
    rank: int


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
        self, item: inference_pb2.InferItem, deadline: float
    ) -> inference_pb2.InferResult:
        """Return what became of an item; never raises for what concerns this item alone.

        Args:
            item: The item.
            deadline: Until when, on the clock's monotonic scale: the call's, or its own.
        """
        started = self._clock.monotonic()
        result = inference_pb2.InferResult(id=item.context.id)
        known: Known | None = None
        reason = ""
        try:
            prepared = await self.prepare(item, deadline, streamed=False)
            known = prepared.known
            with self.span(item, known) as metadata:
                result.metering.sent = True
                async with self.gate(prepared, deadline):
                    answer = await self._fleet.infer(prepared.ask, deadline, metadata)
            check_output(prepared, answer, prepared.rows)
            result.outputs.extend(answer.outputs)
            await self.meter(result.metering, prepared, answer)
        except ServiceError as error:
            reason = error.reason
            result.status.CopyFrom(to_status(error))
        except Exception as error:
            log.exception("unexpected error", extra={"model": item.model})
            reason = "INTERNAL"
            result.status.CopyFrom(to_status(error))
        self.finish(result.metering, known, started, reason)
        return result

    async def prepare(
        self, item: inference_pb2.InferItem, deadline: float, *, streamed: bool
    ) -> Prepared:
        """Check everything about an item that can be checked before Triton is asked.

        Raises:
            DeadlineExceededError: its time is up.
            DataLossError: INPUT_DIGEST_MISMATCH.
            InvalidArgumentError: TENSOR_MISMATCH, with every violation.
            UnimplementedError: MODEL_STREAMS, the model can't answer with one response.
            ServiceError: as `Models.find` says.
        """
        now = self._clock.monotonic()
        if now >= deadline:
            raise DeadlineExceededError("DEADLINE_EXCEEDED", "the item's time is up")
        given = _input(item.input)
        known = await self._fleet.models.find(item.model, item.version)
        spec = known.spec
        assert spec is not None
        if spec.decoupled and not streamed:
            raise UnimplementedError(
                "MODEL_STREAMS", "the model answers in streams only", metadata=_about(known)
            )
        violations = spec.violations(given)
        if violations:
            raise InvalidArgumentError(
                "TENSOR_MISMATCH",
                "; ".join(f"{field}: {text}" for field, text in violations[:8]),
                metadata=_about(known),
                violations=violations,
            )
        rank = _RANKS.get(item.context.priority, 1)
        ask = Ask(
            spec,
            item.context.id,
            given,
            priority=1 + rank * (spec.priority_levels - 1) // _LOWEST
            if spec.priority_levels
            else 0,
            timeout_us=max(1, int((deadline - now) * 1e6)) if spec.queue_timeout else 0,
        )
        return Prepared(known, ask, spec.rows(given), rank)

    def gate(self, prepared: Prepared, deadline: float) -> Any:
        """Return the context in which a model may be asked: a turn at its gate."""
        name = prepared.known.name
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = Gate(*self._limits)
        return gate.pass_through(prepared.rank, deadline - self._clock.monotonic())

    def span(self, item: inference_pb2.InferItem, known: Known) -> AbstractContextManager[Metadata]:
        """Return a context that gives the trace headers for Triton, whose spans then join.

        Without tracing in this process the item's own headers are passed on.
        """
        if not telemetry.tracing():
            return nullcontext(_headers(item.context.trace))
        return _Span(item, known)

    async def meter(
        self, metering: inference_pb2.Metering, prepared: Prepared, answer: Answer
    ) -> None:
        """Write what an answer took."""
        known = prepared.known
        metering.reported_version = answer.version
        metering.artifact_digest = known.artifact.digest
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
        if not metering.artifact_digest:
            metering.artifact_digest = known.artifact.digest
        metrics.ITEMS.labels(known.name, known.version, reason).inc()
        metrics.SECONDS.labels(known.name).observe(seconds)


def check_output(prepared: Prepared, answer: Answer, rows: int | None) -> None:
    """Check an answer against the model's own description.

    Raises:
        InternalError: MODEL_OUTPUT_INVALID.
    """
    spec = prepared.known.spec
    assert spec is not None
    faults = spec.faults(answer.outputs, rows)
    if faults:
        log.error("wrong output", extra={"model": spec.name, "faults": faults[:8]})
        raise InternalError(
            "MODEL_OUTPUT_INVALID",
            "the model's output is not what it declares: " + "; ".join(faults[:8]),
            metadata=_about(prepared.known),
        )


def _about(known: Known) -> dict[str, str]:
    return {"model": known.name, "version": known.version}


def _input(model_input: tensor_pb2.ModelInput) -> Sequence[tensor_pb2.Tensor]:
    """Return the tensors: as they came if they carry a digest, normalized if they don't."""
    if model_input.digest:
        if not digest.fits(model_input):
            raise DataLossError(
                "INPUT_DIGEST_MISMATCH", "the model input is not the one that its digest names"
            )
        return model_input.tensors
    try:
        return tensors.normalize(model_input.tensors, "input.tensors")
    except tensors.TensorError as error:
        raise InvalidArgumentError(
            "TENSOR_MISMATCH", str(error), violations=[(error.field, error.message)]
        ) from error


def _headers(item: context_pb2.TraceContext) -> Metadata:
    if not item.traceparent:
        return ()
    headers = [("traceparent", item.traceparent)]
    if item.tracestate:
        headers.append(("tracestate", item.tracestate))
    return headers


class _Span:
    """The span of one call of Triton; it belongs to the item's trace, and links to the call's."""

    def __init__(self, item: inference_pb2.InferItem, known: Known) -> None:
        here = trace.get_current_span().get_span_context()
        own = item.context.trace.traceparent
        self._span = _tracer.start_span(
            names.SPAN_TRITON,
            context=telemetry.extract(item.context.trace) if own else None,
            kind=SpanKind.CLIENT,
            links=[Link(here)] if own and here.is_valid else (),
            attributes={
                "rpc.system": "grpc",
                "rpc.service": "inference.GRPCInferenceService",
                names.PATH: "local",
                names.MODEL: known.name,
                names.MODEL_VERSION: known.version,
                names.DECISION_ID: item.decision_id,
            },
        )

    def __enter__(self) -> Metadata:
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        return list(carrier.items())

    def __exit__(self, kind: object, error: BaseException | None, trace_back: object) -> None:
        if error is not None:
            reason = error.reason if isinstance(error, ServiceError) else type(error).__name__
            self._span.set_status(Status(StatusCode.ERROR, reason))
        self._span.end()
