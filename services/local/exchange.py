"""What goes to Triton and what comes back, in our own terms, whichever of its doors it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.local.spec import ModelSpec
from twinpath.inference.v1 import tensor_pb2

Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `timeout_us` and `priority` are for Triton's queue; 0: not passed.

    `quick`: it is answered within milliseconds, so that cancelling it would save nothing.
    """

    spec: ModelSpec
    id: str
    inputs: Sequence[tensor_pb2.Tensor]
    priority: int = 0
    timeout_us: int = 0
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One response, and the bytes of the two bodies."""

    version: str
    outputs: list[tensor_pb2.Tensor]
    bytes_out: int
    bytes_in: int


# Triton's names of data types, and ours.
VALUES: dict[str, Any] = {
    name.removeprefix("DATATYPE_"): value for name, value in tensor_pb2.Datatype.items() if value
}
NAMES = {value: name for name, value in VALUES.items()}
