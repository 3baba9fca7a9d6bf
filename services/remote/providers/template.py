"""JSON in, JSON out, without code: a template for the request, JMESPath for the answer.

In the body and the path, `{{name}}` stands for a tensor as nested lists, `{{name[3]}}` for its
element 3 in row-major order, `{{model}}` and `{{version}}` for the model's. A string that is
nothing else becomes the value itself; inside a longer string it becomes text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn
from urllib.parse import quote

import jmespath
import jmespath.exceptions
from pydantic import field_validator

from services.chassis.errors import InvalidArgumentError
from services.remote import failures
from services.remote.catalog import Model, Options, Provider, TensorEntry
from services.remote.oip_body import json_data, raw_of_json
from services.remote.provider import Ask, no_stream
from services.remote.wire import (
    JSON_TYPE,
    AnswerError,
    Body,
    Parsed,
    Reply,
    Usage,
    dump,
    json_answer,
)
from services.remote.yaml_lines import Mistake
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

RENDERER = "template/1"
_PLACE = re.compile(r"\{\{(?P<name>[A-Za-z_][\w.-]*)(?:\[(?P<index>\d+)\])?\}\}")


def _expression(value: str) -> str:
    try:
        jmespath.compile(value)
    except jmespath.exceptions.JMESPathError as error:
        raise ValueError(f"is no JMESPath: {str(error).splitlines()[0]}") from None
    return value


class ModelOptions(Options):
    """Of one model.

    Attributes:
        method: HTTP method.
        path: Below the base URL.
        body: The request's JSON.
        outputs: For each output tensor, where its elements stand in the answer.
        version: Where the answer names the model's version; absent: it does not.
        input_tokens: Where the answer counts tokens in.
        output_tokens: Where it counts tokens out.
        refused: What is true in an answer that the content policy stopped.
        cut: What is true in an answer that the length limit cut.
    """

    method: Literal["POST", "PUT"] = "POST"
    path: str = ""
    body: dict[str, Any]
    outputs: dict[str, str]
    version: str | None = None
    input_tokens: str | None = None
    output_tokens: str | None = None
    refused: str | None = None
    cut: str | None = None

    @field_validator("version", "input_tokens", "output_tokens", "refused", "cut")
    @classmethod
    def _one(cls, value: str | None) -> str | None:
        return None if value is None else _expression(value)

    @field_validator("outputs")
    @classmethod
    def _all(cls, value: dict[str, str]) -> dict[str, str]:
        return {name: _expression(text) for name, text in value.items()}


class ProviderOptions(Options):
    """None."""


def check(model: Model) -> Iterator[Mistake]:
    """Yield what a template names that the model does not have, and the other way round."""
    options = ModelOptions.model_validate(model.options)
    known = {entry.name for entry in model.inputs}
    used = {found["name"] for found in _PLACE.finditer(json.dumps(options.body) + options.path)}
    for name in sorted(used - known - {"model", "version"}):
        yield ("options", "body"), f"the model has no input {name!r}"
    for name in sorted(known - used):
        yield ("options", "body"), f"the input {name!r} is nowhere sent"
    if set(options.outputs) != {entry.name for entry in model.outputs}:
        yield ("options", "outputs"), "must name every output of the model, and nothing else"


class Dialect:
    """See `provider.Dialect`."""

    probe_path = "/"

    def __init__(self, provider: Provider) -> None:
        self._renderers: dict[int, str] = {}
        del provider

    def streams(self, model: Model) -> bool:
        """Never."""
        del model
        return False

    def longest_answer(self, model: Model) -> int:
        """None: tokens out are not what is counted here."""
        del model
        return 0

    def body(self, ask: Ask, *, stream: bool) -> Body:
        """Fill the template in."""
        del stream
        options = ModelOptions.of(ask.model)
        values: dict[str, Any] = {"model": ask.model.on_wire, "version": ask.model.version}
        for index, tensor in enumerate(ask.tensors):
            values[tensor.name] = (tensor, json_data(tensor, f"input.tensors[{index}].raw"))
        path = _PLACE.sub(lambda m: quote(_text(_value(m, values)), safe=""), options.path)
        content = dump(_filled(options.body, values))
        headers = {"Content-Type": JSON_TYPE}
        renderer = self._renderer(ask.model, options)
        return Body(content, headers, renderer, path, options.method, options.path)

    def answer(self, ask: Ask, reply: Reply) -> Parsed:
        """Look the outputs up."""
        options = ModelOptions.of(ask.model)
        document = json_answer(reply)
        version = _look(options.version, document)
        usage = None
        if options.input_tokens is not None or options.output_tokens is not None:
            usage = Usage(
                _count(_look(options.input_tokens, document)),
                _count(_look(options.output_tokens, document)),
            )
        named = "" if version is None else str(version)
        if _look(options.refused, document) is True:
            return Parsed((), named, inference_pb2.FINISH_REASON_CONTENT_FILTER, usage)
        cut = _look(options.cut, document) is True
        finish = inference_pb2.FINISH_REASON_LENGTH if cut else Parsed(()).finish_reason
        outputs = [
            _tensor(entry, _look(options.outputs[entry.name], document))
            for entry in ask.model.outputs
        ]
        return Parsed(outputs, named, finish, usage)

    def refused(self, reply: Reply) -> failures.Failure | bool | None:
        """Nothing is known of such a vendor's errors but their status."""
        del reply
        return None

    def decoder(self, ask: Ask) -> NoReturn:
        """Never called: see `streams`."""
        no_stream(ask)

    def _renderer(self, model: Model, options: ModelOptions) -> str:
        """Return the renderer's version: this code's and the template's own."""
        found = self._renderers.get(id(model))
        if found is None:
            whole = json.dumps([options.method, options.path, options.body], sort_keys=True)
            digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
            found = self._renderers[id(model)] = f"{RENDERER}:{digest}"
        return found


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, values) for value in node]
    if not isinstance(node, str):
        return node
    whole = _PLACE.fullmatch(node)
    if whole is not None:
        return _value(whole, values)
    return _PLACE.sub(lambda found: _text(_value(found, values)), node)


def _value(found: re.Match[str], values: Mapping[str, Any]) -> Any:
    held = values[found["name"]]
    if isinstance(held, str):
        return held
    tensor, elements = held
    if found["index"] is not None:
        index = int(found["index"])
        if index >= len(elements):
            raise InvalidArgumentError(
                "TENSOR_NOT_RENDERABLE", f"tensor {tensor.name} has no element {index}"
            )
        return elements[index]
    return _nested(elements, list(tensor.shape))


def _nested(elements: list[Any], shape: list[int]) -> Any:
    if not shape:
        return elements[0]
    if len(shape) == 1:
        return elements
    size = len(elements) // shape[0] if shape[0] else 0
    return [_nested(elements[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _look(expression: str | None, document: dict[str, Any]) -> Any:
    if expression is None:
        return None
    try:
        return jmespath.search(expression, document)
    except jmespath.exceptions.JMESPathError:
        raise AnswerError("expression") from None


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**48 else 0


def _tensor(entry: TensorEntry, value: Any) -> tensor_pb2.Tensor:
    """Return a JSON value, one element or lists of them, as a tensor of the catalog's shape."""
    if value is None:
        raise AnswerError("missing_output")
    data = value if isinstance(value, list) else [value]
    flat = data
    while flat and all(isinstance(row, list) for row in flat):
        flat = [element for row in flat for element in row]
    known = 1
    for size in entry.shape:
        known *= size if size > 0 else 1
    if -1 in entry.shape and (known == 0 or len(flat) % known):
        raise AnswerError("shape")
    shape = [len(flat) // known if size == -1 else size for size in entry.shape]
    if entry.shape.count(-1) > 1:
        raise AnswerError("shape")
    tensor = tensor_pb2.Tensor(name=entry.name, datatype=entry.spec().datatype, shape=shape)
    tensor.raw = raw_of_json(tensor.datatype, shape, flat)
    try:
        tensors.check_raw(tensor)
    except tensors.TensorError:
        raise AnswerError("shape") from None
    return tensor
