"""Everything about an item that is checked before Triton is asked, and about its answer after."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence

from services.chassis.errors import (
    DataLossError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnimplementedError,
)
from services.local import layout as layouts
from services.local.exchange import Ask
from services.local.layout import Layout
from services.local.models import Known
from services.local.spec import ModelSpec
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
BATCH_RANK = _LOWEST = max(_RANKS.values())


class Prepared:
    """An item that may go to Triton.

    Attributes:
        known: The model as it was known then.
        spec: Its description.
        id: The item's id.
        given: Its tensors.
        layout: What is known of their layout.
        raws: Their contents, in the same order.
        rank: 0 is the most urgent.
        deadline: Until when, on the clock's monotonic scale.
        left_us: The time left when it was prepared, in microseconds.
    """

    __slots__ = ("deadline", "given", "id", "known", "layout", "left_us", "rank", "raws", "spec")

    def __init__(
        self,
        known: Known,
        item: inference_pb2.InferItem,
        given: Sequence[tensor_pb2.Tensor],
        layout: Layout,
        raws: Sequence[bytes],
        times: tuple[float, float],
    ) -> None:
        deadline, now = times
        assert known.spec is not None  # it serves
        self.known = known
        self.spec: ModelSpec = known.spec
        self.id = item.context.id
        self.given = given
        self.layout = layout
        self.raws = raws
        self.rank = _RANKS.get(item.context.priority, 1)
        self.deadline = deadline
        self.left_us = max(1, int((deadline - now) * 1e6))

    @property
    def key(self) -> tuple[str, str]:
        """The model's name and version."""
        return self.spec.name, self.spec.version

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return self.layout.rows

    @property
    def kin(self) -> Hashable:
        """A key that items have in common which may share a request; None: alone."""
        spec = self.spec
        if spec.max_batch_size < 2 or spec.decoupled:
            return None
        return spec.name, spec.version, self.rank, self.layout.kin

    def ask(self) -> Ask:
        """Return the request for this item alone."""
        return ask([self])


def ask(items: Sequence[Prepared]) -> Ask:
    """Return one request for kin: rows laid end to end, no item's bytes changed."""
    first = items[0]
    given = first.given
    if len(items) > 1:
        rows = sum([item.layout.rows for item in items])
        given = [
            tensor_pb2.Tensor(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=[rows, *tensor.shape[1:]],
                raw=b"".join([item.raws[index] for item in items]),
            )
            for index, tensor in enumerate(first.given)
        ]
    spec = first.spec
    levels = spec.priority_levels
    return Ask(
        spec,
        first.id,
        given,
        priority=1 + first.rank * (levels - 1) // _LOWEST if levels else 0,
        timeout_us=max(item.left_us for item in items) if spec.queue_timeout else 0,
        quick=first.known.meter.is_quick,
    )


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
    spec = known.spec
    assert spec is not None  # it serves
    given: Sequence[tensor_pb2.Tensor] = item.input.tensors
    wanted = item.input.digest
    layout = known.layouts.get(layouts.signature(given)) if wanted else None
    if layout is None:
        given = _input(item.input)
        layout = _examine(spec, given, streamed=streamed)
        if wanted:
            known.layouts.keep(layout)
        raws = [tensor.raw for tensor in given]
        return Prepared(known, item, given, layout, raws, (deadline, now))
    raws = [tensor.raw for tensor in given]
    found = layout.digest(raws)
    if found is None:
        found = wanted if digest.fits(item.input) else b""
    if found != wanted:
        raise DataLossError(
            "INPUT_DIGEST_MISMATCH", "the model input is not the one that its digest names"
        )
    for raw, size in zip(raws, layout.sizes, strict=True):
        if len(raw) != size:  # or the size does not follow from the shape
            _examine(spec, given, streamed=streamed)
            break
    if spec.decoupled and not streamed:
        raise _streams(spec)
    return Prepared(known, item, given, layout, raws, (deadline, now))


def _examine(spec: ModelSpec, given: Sequence[tensor_pb2.Tensor], *, streamed: bool) -> Layout:
    """Look at all of an input; return its layout."""
    if spec.decoupled and not streamed:
        raise _streams(spec)
    violations = spec.violations(given)
    if violations:
        raise InvalidArgumentError(
            "TENSOR_MISMATCH",
            "; ".join(f"{field}: {text}" for field, text in violations[:8]),
            metadata=about(spec),
            violations=violations,
        )
    return layouts.make(given, layouts.signature(given), spec.rows(given))


def _streams(spec: ModelSpec) -> UnimplementedError:
    return UnimplementedError(
        "MODEL_STREAMS", "the model answers in streams only", metadata=about(spec)
    )


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
