"""The filter on outputs: what does not fit the task's contract and policy reaches no caller.

A function of the outputs and the task, the same whichever path they came from, a kept answer and
a replay too. What it lets through may be kept for others: values that belong to one request
alone are put back later, by `give_back`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from services.chassis.errors import InternalError
from services.router import markup
from services.router.catalog import OutputSpec, Task
from services.router.decision import Decision
from services.router.filters import MARKUP, Find, OutputPolicy, counted, masked
from services.router.redaction import put_back
from services.router.text_schema import escaped
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2


def accept(decision: Decision, outputs: Sequence[tensor_pb2.Tensor]) -> Sequence[tensor_pb2.Tensor]:
    """Return an output as the task lets it through; the decision notes what was masked or refused.

    Raises:
        InternalError: OUTPUT_CONTRACT, or OUTPUT_POLICY: it holds what the task's policy refuses.
    """
    checked = check_outputs(decision.task, outputs)
    policy = decision.task.filters.policy
    return checked if policy is None else _police(decision, policy, checked)


def _police(
    decision: Decision, policy: OutputPolicy, outputs: Sequence[tensor_pb2.Tensor]
) -> list[tensor_pb2.Tensor]:
    kinds: list[str] = []
    let_through = []
    for tensor in outputs:
        if tensor.datatype != tensors.BYTES:
            let_through.append(tensor)
            continue
        elements = []
        for element in tensors.decode_bytes(tensor.raw):
            text = element.decode("utf-8", "surrogateescape")
            finds = policy.find(text)
            refuse(decision, policy, tensor.name, finds)
            kinds += [find.kind for find in finds]
            elements.append(masked(text, finds).encode("utf-8", "surrogateescape"))
        let_through.append(_with_elements(tensor, elements))
    decision.masked = counted("masked", kinds)
    return let_through


def refuse(decision: Decision, policy: OutputPolicy, name: str, finds: Sequence[Find]) -> None:
    """Raise if the policy refuses one of these finds.

    Raises:
        InternalError: OUTPUT_POLICY, with the tensor and the kinds, never what was found.
    """
    refused = policy.refused(finds)
    if not refused:
        return
    kinds = ", ".join(sorted(set(refused)))
    decision.stopped += counted("refused", refused)
    raise InternalError(
        "OUTPUT_POLICY",
        f"the model's output {name} holds what the task's policy refuses: {kinds}",
        metadata={"tensor": name, "kinds": kinds},
    )


def give_back(
    decision: Decision, outputs: Sequence[tensor_pb2.Tensor]
) -> Sequence[tensor_pb2.Tensor]:
    """Return the outputs with the request's own values in place of their tokens.

    Where that would make unsafe markup of a clean text, and the task looks for it, the tokens stay.
    """
    if decision.assembled is None or not decision.assembled.values:
        return outputs
    policy = decision.task.filters.policy
    wary = policy is not None and MARKUP in policy.actions
    given = []
    changed = False
    for tensor in outputs:
        if tensor.datatype == tensors.BYTES and b"[" in tensor.raw:
            before = tensors.decode_bytes(tensor.raw)
            values = values_for(decision, tensor.name)
            after = [_give_back(element, values, wary=wary) for element in before]
            if after != before:
                changed = True
                tensor = _with_elements(tensor, after)  # noqa: PLW2901 - the same place
        given.append(tensor)
    if changed:
        decision.model_outputs = outputs
    return given


def values_for(decision: Decision, name: str) -> Mapping[str, str]:
    """Return the request's own values by their tokens, as they are written in one output.

    In a text that is JSON by the task's contract, that is as JSON writes them.
    """
    values = decision.assembled.values if decision.assembled is not None else None
    if values and any(s.name == name and s.form is not None for s in decision.task.outputs):
        return {token: escaped(value) for token, value in values.items()}
    return values or {}


def _give_back(element: bytes, values: Mapping[str, str], *, wary: bool) -> bytes:
    text = element.decode("utf-8", "surrogateescape")
    whole = put_back(text, values)
    if wary and whole != text and next(markup.spans(whole), None) is not None:
        return element
    return whole.encode("utf-8", "surrogateescape")


def _with_elements(tensor: tensor_pb2.Tensor, elements: Sequence[bytes]) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=tensor.shape,
        raw=tensors.encode_bytes(elements),
    )


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
    if spec.rules_texts:
        return _fault_of_texts(spec, array.reshape(-1).tolist())
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


def _fault_of_texts(spec: OutputSpec, elements: Sequence[bytes]) -> str:
    for element in elements:
        text = element.decode("utf-8", "surrogateescape")
        if spec.one_of and text not in spec.one_of:
            return "is none of the texts that it may be"
        if spec.max_len is not None and len(text) > spec.max_len:
            return f"is longer than {spec.max_len} characters"
        fault = spec.form.fault(text) if spec.form is not None else ""
        if fault:
            return fault
    return ""
