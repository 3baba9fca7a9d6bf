"""Asking a language model: the model input as a text, and its answer as tensors. Pure.

`text` tasks have one BYTES input and one BYTES output of one element, which may be forced to a
JSON schema of the catalog's. `tabular` tasks have numbers: a versioned template writes them as
lines, and the answer is forced to a JSON schema made of the output tensors. Any change of what a
template writes is a new template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from services.chassis.errors import InvalidArgumentError
from services.remote.catalog import Model, Options, TensorEntry
from services.remote.oip_body import json_data, raw_of_json
from services.remote.provider import Ask, Tensors
from services.remote.wire import AnswerError
from services.remote.yaml_lines import Mistake
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

_SCHEMA_TYPES = {"BYTES": "string", "BOOL": "boolean", "FP32": "number", "FP64": "number"}
_NO_JSON = ("FP16", "BF16")
SCHEMA_NAME = "answer"
# Inputs of Triton's vLLM backend beside the text: how to sample, and whether to stream (which the
# call itself says here). Both paths get them; a vendor's request has fields of its own for them.
SAMPLING = ("sampling_parameters", "stream")


class PromptOptions(Options):
    """What is asked, and how.

    Attributes:
        task: `text` or `tabular`.
        instructions: Said before the input, as the system's words.
        template: How numbers become lines.
        columns: For each input tensor of a tabular task, the names of its elements, in order.
        max_tokens: Tokens of the answer at most.
        temperature: Of the sampling; absent: the vendor's default.
        answer_schema: The JSON schema that a text task's answer is forced to, of an object; absent:
            it is free. Vendors know parts of JSON Schema only; the task's own `json_schema` judges.
    """

    task: Literal["text", "tabular"] = "text"
    instructions: str = ""
    template: Literal["tabular/1"] = "tabular/1"
    columns: dict[str, list[str]] = Field(default_factory=dict)
    max_tokens: int = Field(default=1024, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    answer_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.task == "tabular") != bool(self.columns):
            raise ValueError("columns belong to tabular tasks, and only to them")
        if self.answer_schema is not None:
            if self.task != "text":
                raise ValueError("answer_schema belongs to text tasks: a table's is made of it")
            if self.answer_schema.get("type") != "object":
                raise ValueError("answer_schema must be of type object")
        return self

    @property
    def free(self) -> bool:
        """Whether the answer is a text of any form; else it is a JSON object, of no use in part."""
        return self.task == "text" and self.answer_schema is None

    def renderer(self, protocol: str) -> str:
        """Return the version of what writes a body by these options."""
        return f"{protocol}+{self.template}" if self.task == "tabular" else protocol


P = TypeVar("P", bound=PromptOptions)


def check(model: Model) -> Iterator[Mistake]:
    """Yield where a model's tensors don't fit its task."""
    options = PromptOptions.model_validate(
        {k: v for k, v in model.options.items() if k in PromptOptions.model_fields}
    )
    if options.task == "text":
        for what, entries in (("inputs", model.inputs), ("outputs", model.outputs)):
            texts = [e for e in entries if what == "outputs" or e.name not in SAMPLING]
            if [(e.datatype, _size(e) or 1) for e in texts] != [("BYTES", 1)]:
                yield (what,), "a text task has one BYTES tensor of one element here"
        return
    for index, entry in enumerate(model.inputs):
        size = _size(entry)
        named = len(options.columns.get(entry.name, ()))
        if size is None:
            yield ("inputs", index, "shape"), "must be fixed: one row is asked about at a time"
        elif size != named:
            yield ("options", "columns"), f"{entry.name} has {size} elements, {named} are named"
    for index, entry in enumerate(model.outputs):
        if _size(entry) is None:
            yield ("outputs", index, "shape"), "must be fixed"
        if entry.datatype in _NO_JSON:
            yield ("outputs", index, "datatype"), "JSON has no form for it"


def question(ask: Ask, options: PromptOptions) -> str:
    """Return the user's text. Raises InvalidArgumentError for what no text can say."""
    if options.task == "text":
        for index, tensor in enumerate(ask.tensors):
            if tensor.name not in SAMPLING:
                return str(json_data(tensor, f"input.tensors[{index}].raw")[0])
        raise InvalidArgumentError("TENSOR_MISMATCH", "there is no text among the tensors")
    lines = []
    for index, tensor in enumerate(ask.tensors):
        values = json_data(tensor, f"input.tensors[{index}].raw")
        if tensor.datatype == tensors.FP32:  # the shortest form that is this FP32, no longer one
            values = [str(value) for value in tensors.to_numpy(tensor).reshape(-1)]
        names = options.columns[tensor.name]
        lines += [f"- {name}: {value}" for name, value in zip(names, values, strict=True)]
    wanted = ", ".join(entry.name for entry in ask.model.outputs)
    return "Input:\n" + "\n".join(lines) + f"\n\nAnswer with one JSON object: {wanted}."


def sampled(ask: Ask, options: P) -> P:
    """Return the options with what the input itself says about sampling.

    Raises:
        InvalidArgumentError: `sampling_parameters` is no JSON object, or a value is out of range.
    """
    for index, tensor in enumerate(ask.tensors):
        if tensor.name != "sampling_parameters":
            continue
        place = f"input.tensors[{index}].raw"
        try:
            said = json.loads(json_data(tensor, place)[0])
            known = {k: said[k] for k in ("max_tokens", "temperature") if k in said}
            return options.model_validate({**options.model_dump(), **known})
        except (ValueError, TypeError):
            fault = (place, "must be a JSON object with max_tokens and temperature in range")
            raise InvalidArgumentError(
                "TENSOR_MISMATCH", f"{fault[0]}: {fault[1]}", violations=[fault]
            ) from None
    return options


def form(model: Model, options: PromptOptions) -> dict[str, Any] | None:
    """Return the JSON schema that an answer is forced to; None: it is free."""
    return schema(model) if options.task == "tabular" else options.answer_schema


def schema(model: Model) -> dict[str, Any]:
    """Return the JSON schema of a tabular answer: a property for each output tensor."""
    properties: dict[str, Any] = {}
    for entry in model.outputs:
        one: dict[str, Any] = {"type": _SCHEMA_TYPES.get(entry.datatype, "integer")}
        properties[entry.name] = one if _size(entry) == 1 else {"type": "array", "items": one}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def text_output(model: Model, text: str) -> Tensors:
    """Return a text as the model's output tensor."""
    (entry,) = model.outputs
    shape = [max(1, size) for size in entry.shape]
    raw = tensors.encode_bytes([text.encode(errors="replace")])
    return [tensor_pb2.Tensor(name=entry.name, datatype=tensors.BYTES, shape=shape, raw=raw)]


def object_outputs(model: Model, answer: Mapping[str, Any]) -> Tensors:
    """Return a tabular answer as tensors; raises AnswerError if it breaks the schema."""
    if set(answer) != {entry.name for entry in model.outputs}:
        raise AnswerError("schema")
    outputs = []
    for entry in model.outputs:
        value = answer[entry.name]
        values = value if _size(entry) != 1 else [value]
        if not isinstance(values, list) or len(values) != _size(entry):
            raise AnswerError("schema")
        datatype = entry.spec().datatype
        tensor = tensor_pb2.Tensor(name=entry.name, datatype=datatype, shape=entry.shape)
        tensor.raw = raw_of_json(datatype, list(entry.shape), values)
        outputs.append(tensor)
    return outputs


def _size(entry: TensorEntry) -> int | None:
    """Return how many elements a tensor has; None where a dimension other than 1 is open."""
    return None if -1 in entry.shape else math.prod(entry.shape)
