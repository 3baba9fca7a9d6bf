"""Everything about an item that is checked before Triton is asked, and about its answer after."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis.errors import (
    DataLossError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnimplementedError,
)
from services.local.models import Known
from services.local.spec import ModelSpec
from services.local.triton import Ask
from twinpath.common.v1 import context_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

log = logging.getLogger(__name__)

_RANKS = {
    context_pb2.PRIORITY_INTERACTIVE: 0,
    context_pb2.PRIORITY_UNSPECIFIED: 1,
    context_pb2.PRIORITY_NORMAL: 1,
    context_pb2.PRIORITY_BATCH: 2,
}
_LOWEST = max(_RANKS.values())


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item that may go to Triton.

    Attributes:
        known: The model as it was known then.
        spec: Its description.
        ask: What to ask.
        rows: Rows of the input.
        rank: 0 is the most urgent.
        deadline: Until when, on the clock's monotonic scale.
    """

    known: Known
    spec: ModelSpec
    ask: Ask
    rows: int
    rank: int
    deadline: float

    @property
    def key(self) -> tuple[str, str]:
        """The model's name and version."""
        return self.spec.name, self.spec.version


def prepare(
    item: inference_pb2.InferItem, known: Known, deadline: float, now: float, *, streamed: bool
) -> Prepared:
    """Check an item for a model that serves.

    Raises:
        DeadlineExceededError: its time is up.
        DataLossError: INPUT_DIGEST_MISMATCH.
        InvalidArgumentError: TENSOR_MISMATCH, with every violation.
        UnimplementedError: MODEL_STREAMS, the model can't answer with one response.
    """
    if now >= deadline:
        raise DeadlineExceededError("DEADLINE_EXCEEDED", "the item's time is up")
    given = _input(item.input)
    spec = known.spec
    assert spec is not None  # it serves
    if spec.decoupled and not streamed:
        raise UnimplementedError(
            "MODEL_STREAMS", "the model answers in streams only", metadata=about(spec)
        )
    violations = spec.violations(given)
    if violations:
        raise InvalidArgumentError(
            "TENSOR_MISMATCH",
            "; ".join(f"{field}: {text}" for field, text in violations[:8]),
            metadata=about(spec),
            violations=violations,
        )
    rank = _RANKS.get(item.context.priority, 1)
    levels = spec.priority_levels
    ask = Ask(
        spec,
        item.context.id,
        given,
        priority=1 + rank * (levels - 1) // _LOWEST if levels else 0,
        timeout_us=max(1, int((deadline - now) * 1e6)) if spec.queue_timeout else 0,
    )
    return Prepared(known, spec, ask, spec.rows(given), rank, deadline)


def check_output(spec: ModelSpec, outputs: Sequence[tensor_pb2.Tensor], rows: int | None) -> None:
    """Check an answer against the model's own description; `rows` None: not the rows.

    Raises:
        InternalError: MODEL_OUTPUT_INVALID.
    """
    faults = spec.faults(outputs, rows)
    if faults:
        log.error("wrong output", extra={"model": spec.name, "faults": faults[:8]})
        raise InternalError(
            "MODEL_OUTPUT_INVALID",
            "the model's output is not what it declares: " + "; ".join(faults[:8]),
            metadata=about(spec),
        )


def about(spec: ModelSpec) -> dict[str, str]:
    """Return a model's names, for the metadata of an error."""
    return {"model": spec.name, "version": spec.version}


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
