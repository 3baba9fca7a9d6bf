"""What an adapter to a vendor is, and the registry of adapters by protocol.

A new protocol is one file with a class like `Adapter`, and one line in `compose.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from services.chassis.clock import Clock
from services.remote.catalog import Model, Provider
from twinpath.inference.v1 import inference_pb2, tensor_pb2


@dataclass(frozen=True, slots=True)
class Ask:
    """One attempt, all checks passed.

    Attributes:
        model: What is asked.
        tensors: The model input, normalized, in canonical order. Adapters render it; they don't
            change a value.
        time_left_s: Seconds until the answer is of no use any more.
        headers: Headers that carry the trace context.
    """

    model: Model
    tensors: Sequence[tensor_pb2.Tensor]
    time_left_s: float
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the vendor answered; the metering is filled in beside it, on failure too.

    Attributes:
        outputs: Tensors, contents in `raw`.
        finish_reason: Why the model stopped.
    """

    outputs: Sequence[tensor_pb2.Tensor]
    finish_reason: inference_pb2.FinishReason = inference_pb2.FINISH_REASON_UNSPECIFIED


class Adapter(Protocol):
    """One vendor's protocol. Made for one provider, on the event loop that uses it."""

    @property
    def streaming(self) -> bool:
        """Whether it can answer in chunks."""

    async def infer(self, ask: Ask, metering: inference_pb2.Metering) -> Answer:
        """Ask the vendor once: no retry, no redirect.

        Fills `metering` as far as things are known, on every way out; `sent` becomes true before
        the first byte may leave.

        Raises:
            ServiceError: A row of `failures`.
        """

    async def probe(self, time_left_s: float) -> None:
        """Ask the vendor if it is there. Raises ServiceError if not; sends no data."""

    async def aclose(self) -> None:
        """Close connections."""


MakeAdapter: TypeAlias = Callable[[Provider, Clock, int], Adapter]
"""Makes an adapter of a provider, the clock, and the largest answer in bytes."""
