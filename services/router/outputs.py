"""The filter on outputs: what does not fit the task's output contract reaches no caller.

A pure function of the outputs and the contract, the same whichever path they came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from services.chassis.errors import InternalError
from services.router.catalog import OutputSpec, Task
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2


def check_outputs(task: Task, outputs: Sequence[tensor_pb2.Tensor]) -> list[tensor_pb2.Tensor]:
    """Return the contract's outputs, in its order; what the contract does not list is dropped.

    Raises:
        InternalError: reason OUTPUT_CONTRACT, with the tensor and the rule, never a value.
    """
    by_name = {tensor.name: tensor for tensor in outputs}
    checked = []
    for spec in task.outputs:
        tensor = by_name.get(spec.name)
        fault = "is missing" if tensor is None else _fault(spec, tensor)
        if tensor is None or fault:
            raise InternalError(
                "OUTPUT_CONTRACT",
                f"the model's output {spec.name} {fault}",
                metadata={"tensor": spec.name, "rule": fault},
            )
        checked.append(tensor)
    return checked


def _fault(spec: OutputSpec, tensor: tensor_pb2.Tensor) -> str:
    if tensors.datatype_name(tensor.datatype) != spec.datatype:
        return f"is not {spec.datatype}"
    shape = list(tensor.shape)
    if len(shape) != len(spec.shape) or any(
        want not in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    ):
        return f"has shape {shape}, not {spec.shape}"
    try:
        array = tensors.to_numpy(tensor)
    except tensors.TensorError as error:
        return error.message
    if array.size == 1 and array.dtype.kind in "iuf":  # the usual case, ten times as fast
        return _fault_of_one(spec, array.item())
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "is not finite"
    if array.dtype.kind in "iuf" and array.size:
        if spec.min is not None and array.min() < spec.min:
            return "is below its range"
        if spec.max is not None and array.max() > spec.max:
            return "is above its range"
    return ""


def _fault_of_one(spec: OutputSpec, value: float) -> str:
    if not math.isfinite(value):
        return "is not finite"
    if spec.min is not None and value < spec.min:
        return "is below its range"
    if spec.max is not None and value > spec.max:
        return "is above its range"
    return ""
