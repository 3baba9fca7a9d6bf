"""The door: everything that is checked before an item may leave, in one place and one order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis.errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from services.remote import meters, tracing
from services.remote.catalog import Model, Provider
from services.remote.grants import GrantVerifier, UsedGrants, check_fit
from services.remote.limit_claims import Claim
from services.remote.limits import Limits
from services.remote.prices import guess_tokens
from services.remote.provider import Ask
from services.remote.tensor_fit import check_inputs
from services.remote.vendors import Vendor, Vendors
from twinpath.inference import detectors, digest, tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

_INTEGERS = (tensor_pb2.DATATYPE_INT64, tensor_pb2.DATATYPE_UINT64)


@dataclass(frozen=True, slots=True)
class Admitted:
    """An item that may leave, now and once.

    Attributes:
        vendor: Whom to ask.
        ask: What to ask.
        taken: What it took of the limits.
    """

    vendor: Vendor
    ask: Ask
    taken: Claim


class Door:
    """Admits items.

    Args:
        vendors: The vendors of the catalog.
        verifier: Tells the router's grants.
        used: Remembers those that have served.
        limits: How much may be asked.
    """

    def __init__(
        self, vendors: Vendors, verifier: GrantVerifier, used: UsedGrants, limits: Limits
    ) -> None:
        self._vendors = vendors
        self._verifier = verifier
        self._used = used
        self._limits = limits

    async def admit(
        self,
        item: inference_pb2.InferItem,
        left_s: float,
        headers: dict[str, str],
        *,
        limited: bool = True,
    ) -> Admitted:
        """Check everything, then use the grant up.

        There is no await before the grant's use: of two items with one grant that arrive at once,
        one is admitted; with a state store also if they arrive at two replicas.

        What is not `limited` goes in a batch: no limit by the minute counts for it.

        Raises:
            ServiceError: The first check that failed.
        """
        start = time.monotonic()
        if left_s <= 0:
            raise _too_late()
        claims = self._verifier.verify(item)
        tracing.granted(claims)
        given, found = _model_input(item.input)
        vendor = self._vendors.find(item.provider)
        model = self._vendors.find_model(vendor, item.model, item.version)
        check_fit(claims, item, found, vendor.provider, model)
        check_inputs(given, model.inputs)
        _search(vendor.provider, given)
        use = self._used.use(claims)
        remaining = left_s - (time.monotonic() - start)
        try:
            if limited:
                taken = await self._limits.acquire(
                    vendor.provider,
                    model,
                    _caller(item),
                    _estimate(vendor, model, given),
                    grant=use,
                    left_s=remaining,
                )
            else:
                await self._limits.use_grant(use, remaining)
                taken = Claim()
        except (ResourceExhaustedError, DeadlineExceededError):
            self._used.release(claims)  # it may come again, once there is room
            raise
        remaining = left_s - (time.monotonic() - start)
        if remaining <= 0:
            self._limits.settle_soon(taken, 0)  # it sends nothing, so it uses no tokens
            raise _too_late()
        return Admitted(vendor, Ask(model, given, remaining, headers), taken)

    def settle(self, admitted: Admitted, metering: inference_pb2.Metering) -> None:
        """Correct the limits to what the vendor counted, if it did; nobody waits for it."""
        used = metering.input_tokens + metering.output_tokens
        self._limits.settle_soon(admitted.taken, used or (None if metering.sent else 0))


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("DEADLINE_EXCEEDED", "the item's time is up")


def _caller(item: inference_pb2.InferItem) -> tuple[str, str]:
    """Return a key for the caller, a digest since the state store need not know names; its name."""
    caller = item.context.caller  # not its purpose, which it chooses itself
    who = f"{len(caller.tenant)}:{caller.tenant}{caller.identity}"
    return hashlib.sha256(who.encode()).hexdigest()[:16], caller.identity


def _estimate(vendor: Vendor, model: Model, given: Sequence[tensor_pb2.Tensor]) -> int:
    """Return about how many tokens an item takes: what goes in, and the most that may come out."""
    size = sum(len(tensor.raw) for tensor in given)
    return guess_tokens(size) + vendor.adapter.longest_answer(model)


def _search(provider: Provider, given: Sequence[tensor_pb2.Tensor]) -> None:
    """Refuse what a detector finds in texts and whole numbers; measurements are neither.

    Raises:
        PermissionDeniedError: SENSITIVE_CONTENT, with the detectors' names and the place.
    """
    for index, tensor in enumerate(given):
        if tensor.datatype == tensors.BYTES:
            elements = tensors.decode_bytes(tensor.raw)
            text = "\n".join(element.decode(errors="replace") for element in elements)
        elif tensor.datatype in _INTEGERS:
            text = " ".join(map(str, tensors.to_numpy(tensor).reshape(-1).tolist()))
        else:
            continue
        found = list(detectors.find(text, provider.allow))
        if not found:
            continue
        for name in found:
            meters.REFUSED_CONTENT.labels(provider.name, name).inc()
        raise PermissionDeniedError(
            "SENSITIVE_CONTENT",
            f"input.tensors[{index}] holds what vendor {provider.name} must not get",
            metadata={
                "provider": provider.name,
                "field": f"input.tensors[{index}]",
                "detectors": ",".join(found),
            },
        )


def _model_input(given: tensor_pb2.ModelInput) -> tuple[list[tensor_pb2.Tensor], bytes]:
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
