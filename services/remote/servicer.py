"""The remote path's `inference.v1.Inference`: grants, checks, one attempt for each item."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from opentelemetry import trace

from services.chassis import call as calls
from services.chassis.errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    ServiceError,
    UnimplementedError,
    to_status,
)
from services.remote import meters, tracing
from services.remote.catalog import describe
from services.remote.grants import GrantVerifier, UsedGrants, check_fit
from services.remote.provider import Ask
from services.remote.tensor_fit import check_inputs
from services.remote.vendors import Vendors, model_unknown
from twinpath import telemetry as names
from twinpath.common.v1 import decision_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2

log = logging.getLogger(__name__)


class RemoteInference(inference_pb2_grpc.InferenceServicer):
    """See inference.proto. Knows nothing of any vendor's protocol.

    Args:
        vendors: The vendors of the catalog.
        verifier: Tells the router's grants.
        used: Remembers those that have served.
    """

    def __init__(self, vendors: Vendors, verifier: GrantVerifier, used: UsedGrants) -> None:
        self._vendors = vendors
        self._verifier = verifier
        self._used = used

    async def Infer(
        self, request: inference_pb2.InferRequest, context: object
    ) -> inference_pb2.InferResponse:
        """Run the items at the same time; each one succeeds or fails alone."""
        del context
        call = calls.current()
        left = call.time_left() if call is not None else float("inf")
        results = await asyncio.gather(*(self._item(item, left) for item in request.items))
        return inference_pb2.InferResponse(results=results)

    async def InferStream(
        self, request: inference_pb2.InferStreamRequest, context: object
    ) -> AsyncIterator[inference_pb2.InferStreamResponse]:
        """Refuse clearly: no adapter streams yet. No grant is used up, nothing is sent."""
        del context
        self._verifier.verify(request.item)
        vendor = self._vendors.find(request.item.provider)
        self._vendors.find_model(vendor, request.item.model, request.item.version)
        raise UnimplementedError(
            "STREAMING_UNSUPPORTED",
            f"vendor {vendor.provider.name} does not answer in chunks; use Infer",
            metadata={"provider": vendor.provider.name},
        )
        yield inference_pb2.InferStreamResponse()  # makes this a generator

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
                    described.streaming = vendor.adapter.streaming
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

    async def _item(
        self, item: inference_pb2.InferItem, call_left_s: float
    ) -> inference_pb2.InferResult:
        start = time.perf_counter()
        result = inference_pb2.InferResult(id=item.context.id)
        metering = result.metering
        left = call_left_s
        if item.context.time_left_us:
            left = min(left, item.context.time_left_us / 1e6)
        reason = "OK"
        with tracing.attempt(item) as (span, headers):
            try:
                await self._attempt(item, left, headers, result)
            except ServiceError as error:
                reason = error.reason
                result.status.CopyFrom(to_status(error))
                span.set_status(trace.StatusCode.ERROR, reason)
            except Exception as error:
                reason = "INTERNAL"
                log.exception("unexpected error")
                result.status.CopyFrom(to_status(error))
                span.set_status(trace.StatusCode.ERROR, reason)
            except asyncio.CancelledError:
                reason = "CANCELLED"
                raise
            finally:
                elapsed = time.perf_counter() - start
                metering.latency_us = int(elapsed * 1e6)
                span.set_attribute(names.MODEL_VERSION, metering.reported_version)
                if metering.HasField("cost"):
                    span.set_attribute(names.COST_NANOS, metering.cost.nanos)
                _count(item, metering, reason, elapsed)
        return result

    async def _attempt(
        self,
        item: inference_pb2.InferItem,
        left_s: float,
        headers: dict[str, str],
        result: inference_pb2.InferResult,
    ) -> None:
        """Check everything, use the grant up, ask the vendor.

        There is no await between the last check and the grant's use.
        """
        start = time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError("DEADLINE_EXCEEDED", "the item's time is up")
        claims = self._verifier.verify(item)
        given, found = _model_input(item.input)
        vendor = self._vendors.find(item.provider)
        model = self._vendors.find_model(vendor, item.model, item.version)
        check_fit(claims, item, found, vendor.provider, model)
        check_inputs(given, model.inputs)
        remaining = left_s - (time.monotonic() - start)
        if remaining <= 0:
            raise DeadlineExceededError("DEADLINE_EXCEEDED", "the item's time is up")
        self._used.use(claims)
        answer = await vendor.adapter.infer(Ask(model, given, remaining, headers), result.metering)
        self._vendors.reported(item.provider, model, result.metering.reported_version)
        result.outputs.extend(answer.outputs)
        result.finish_reason = answer.finish_reason


def _model_input(
    given: tensor_pb2.ModelInput,
) -> tuple[list[tensor_pb2.Tensor], bytes]:
    """Return the tensors and their digest, recomputed from the tensors.

    Raises:
        DataLossError: INPUT_DIGEST_MISMATCH: they are not what was digested.
        InvalidArgumentError: TENSOR_MISMATCH: there is no digest, and they can't be normalized.
    """
    if given.digest:
        if not digest.fits(given):
            raise DataLossError(
                "INPUT_DIGEST_MISMATCH", "the tensors are not those that were digested"
            )
        return list(given.tensors), given.digest
    try:
        clean = tensors.normalize(given.tensors, "input.tensors")
    except tensors.TensorError as error:
        raise InvalidArgumentError(
            "TENSOR_MISMATCH", str(error), violations=[(error.field, error.message)]
        ) from None
    return clean, digest.digest(clean)


def _count(
    item: inference_pb2.InferItem, metering: inference_pb2.Metering, reason: str, elapsed: float
) -> None:
    """Count an item. Names that the catalog does not know would make labels without end."""
    if reason in ("PROVIDER_UNKNOWN", "MODEL_UNKNOWN") or not metering.sent:
        meters.ATTEMPTS.labels("", "", reason).inc()
        return
    labels = (item.provider, item.model)
    meters.ATTEMPTS.labels(*labels, reason).inc()
    meters.DURATION.labels(*labels).observe(elapsed)
    meters.BYTES.labels(*labels, "out").inc(metering.bytes_out)
    meters.BYTES.labels(*labels, "in").inc(metering.bytes_in)
    if metering.HasField("cost"):
        basis = decision_pb2.CostBasis.Name(metering.cost.basis).removeprefix("COST_BASIS_")
        meters.COST.labels(*labels, basis.lower()).inc(metering.cost.nanos)
