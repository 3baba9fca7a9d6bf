"""Whether tensors fit what the catalog says about a model."""

from __future__ import annotations

from collections.abc import Sequence

from services.chassis.errors import InvalidArgumentError
from services.remote.catalog import TensorEntry
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

Violation = tuple[str, str]


def check_inputs(given: Sequence[tensor_pb2.Tensor], wanted: Sequence[TensorEntry]) -> None:
    """Check a model input.

    Raises:
        InvalidArgumentError: TENSOR_MISMATCH, with every violation as `input.tensors[i].field`.
    """
    found = violations(given, wanted, "input.tensors")
    if found:
        text = "; ".join(f"{field}: {message}" for field, message in found[:8])
        raise InvalidArgumentError("TENSOR_MISMATCH", text, violations=found)


def violations(
    given: Sequence[tensor_pb2.Tensor], wanted: Sequence[TensorEntry], where: str
) -> list[Violation]:
    """Return every misfit of names, data types, shapes and contents."""
    if _fits(given, wanted):  # as nearly always; the rest finds out what to say
        return []
    entries = {entry.name: entry for entry in wanted}
    found: list[Violation] = []
    for index, tensor in enumerate(given):
        place = f"{where}[{index}]"
        entry = entries.get(tensor.name)
        if entry is None:
            found.append((f"{place}.name", f"the model has no tensor {tensor.name!r}"))
            continue
        if tensor.datatype != entry.value:
            found.append((f"{place}.datatype", f"must be {entry.datatype}"))
            continue
        shape = tensor.shape
        if len(shape) != len(entry.shape) or any(
            want not in (-1, size) for want, size in zip(entry.shape, shape, strict=True)
        ):
            found.append((f"{place}.shape", f"{list(shape)} does not fit {entry.shape}"))
        try:
            tensors.check_raw(tensor, place)
        except tensors.TensorError as error:
            found.append((error.field, error.message))
    names = {tensor.name for tensor in given}
    found.extend(
        (where, f"tensor {entry.name!r} is missing")
        for entry in wanted
        if entry.name not in names and not entry.optional
    )
    return found


def _fits(given: Sequence[tensor_pb2.Tensor], wanted: Sequence[TensorEntry]) -> bool:
    """Tell quickly that nothing is wrong; False only means to look closely."""
    if len(given) != len(wanted):
        return False
    for tensor, entry in zip(given, wanted, strict=True):
        shape = tensor.shape
        if tensor.name != entry.name or tensor.datatype != entry.value:
            return False
        if len(shape) != len(entry.shape):
            return False
        for want, size in zip(entry.shape, shape, strict=True):
            if want not in (-1, size):
                return False
        try:
            tensors.check_raw(tensor)
        except tensors.TensorError:
            return False
    return True
