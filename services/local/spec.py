"""What a model takes and gives, by its own configuration, and whether tensors fit that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

Violation = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a model.

    Attributes:
        name: The name.
        datatype: A value of the contract's Datatype.
        shape: With the batch dimension where the model has one; -1 is any size.
        optional: An input that may be left out.
    """

    name: str
    datatype: tensor_pb2.Datatype
    shape: tuple[int, ...]
    optional: bool = False

    def misfits(self, tensor: tensor_pb2.Tensor, place: str) -> Iterable[Violation]:
        """Yield what is wrong with a tensor of this name."""
        if tensor.datatype != self.datatype:
            want, got = _kind(self.datatype), _kind(tensor.datatype)
            yield f"{place}.datatype", f"the model takes {want}, not {got}"
        shape = tensor.shape
        if len(shape) != len(self.shape) or any(
            want not in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        ):
            yield f"{place}.shape", f"the model takes {list(self.shape)}, not {list(shape)}"
        elif tensor.datatype == self.datatype:
            try:
                tensors.check_raw(tensor, place)
            except tensors.TensorError as error:
                yield error.field, error.message


def _kind(datatype: tensor_pb2.Datatype) -> str:
    try:
        return tensors.datatype_name(datatype)
    except ValueError:
        return f"data type {datatype}"


@dataclass(frozen=True)
class ModelSpec:
    """One model at one version, as Triton describes it.

    Attributes:
        name: The name.
        version: The version: a decimal number, as Triton has it.
        inputs: What it takes.
        outputs: What it gives.
        max_batch_size: The most rows of one call; 0: no batch dimension.
        decoupled: It answers with any number of responses, so only streams can ask it.
        priority_levels: Levels of its queue; 0: it knows no priorities.
        queue_timeout: Its queue drops a request whose time is up, if the request says when.
        instances: Copies of it that compute at once, on one device.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    decoupled: bool = False
    priority_levels: int = 0
    queue_timeout: bool = False
    instances: int = 1
    by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)
    out_by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the tensors."""
        object.__setattr__(self, "by_name", {t.name: t for t in self.inputs})
        object.__setattr__(self, "out_by_name", {t.name: t for t in self.outputs})

    def rows(self, given: Sequence[tensor_pb2.Tensor]) -> int:
        """Return the rows of an input that fits: its batch dimension, else 1."""
        return given[0].shape[0] if self.max_batch_size and given else 1

    def violations(self, given: Sequence[tensor_pb2.Tensor]) -> list[Violation]:
        """Return everything that is wrong with an input, as (field, sentence)."""
        found: list[Violation] = []
        names = set()
        batches = set()
        for index, tensor in enumerate(given):
            place = f"input.tensors[{index}]"
            spec = self.by_name.get(tensor.name)
            if spec is None:
                known = ", ".join(sorted(self.by_name))
                found.append((f"{place}.name", f"the model has no such input; it takes {known}"))
                continue
            names.add(tensor.name)
            misfits = list(spec.misfits(tensor, place))
            found += misfits
            if self.max_batch_size and not misfits:
                rows = tensor.shape[0]
                batches.add(rows)
                if not 0 < rows <= self.max_batch_size:
                    text = f"{rows} rows; the model takes 1 to {self.max_batch_size}"
                    found.append((f"{place}.shape", text))
        for spec in self.inputs:
            if spec.name not in names and not spec.optional:
                found.append(("input.tensors", f"the model's input {spec.name!r} is missing"))
        if len(batches) > 1:
            found.append(("input.tensors", "the tensors differ in their number of rows"))
        return found

    def faults(self, given: Sequence[tensor_pb2.Tensor], rows: int | None) -> list[str]:
        """Return what is wrong with an output; names and shapes only, no values.

        Args:
            given: What Triton returned.
            rows: Rows of the input, None where outputs need not have as many.
        """
        found = []
        for tensor in given:
            spec = self.out_by_name.get(tensor.name)
            if spec is None:
                found.append(f"an output {tensor.name!r} that it does not declare")
                continue
            found += [f"{place}: {text}" for place, text in spec.misfits(tensor, tensor.name)]
            if rows is not None and self.max_batch_size and list(tensor.shape[:1]) != [rows]:
                found.append(f"{tensor.name}: {list(tensor.shape)} for {rows} rows")
        missing = self.out_by_name.keys() - {tensor.name for tensor in given}
        found += [f"no output {name!r}" for name in sorted(missing)]
        return found
