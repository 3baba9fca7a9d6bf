"""The stand-in vendor's reading of the Open Inference Protocol v2: requests in, answers out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from services.standin.tensors import DATATYPES, BadTensorError, Tensor, from_json, from_raw

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
_REQUEST_KEYS = {"id", "parameters", "inputs", "outputs"}
_INPUT_KEYS = {"name", "datatype", "shape", "parameters", "data"}
_OUTPUT_KEYS = {"name", "parameters"}


class BadRequestError(ValueError):
    """The request breaks the protocol; the text is what the vendor answers, with status 400."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that keeps to the protocol; whether a model takes it is not known yet.

    Attributes:
        id: The caller's id for it, echoed in the answer; may be empty.
        inputs: The tensors, in the order in which they came.
        outputs: Wanted outputs by name, and for each whether it is wanted as binary; empty: all.
        binary: Whether outputs that say nothing about it are wanted as binary.
    """

    id: str
    inputs: tuple[Tensor, ...]
    outputs: dict[str, bool]
    binary: bool


def parse(body: bytes, header_length: str | None) -> InferRequest:
    """Read a request body strictly.

    Args:
        body: All of it.
        header_length: Value of `Inference-Header-Content-Length`: how many bytes of it are JSON,
            the rest being binary tensors; None: all is JSON.

    Raises:
        BadRequestError: With the reason.
    """
    split = _header_length(header_length, len(body))
    document = _json(body[:split])
    _only(document, _REQUEST_KEYS, "request")
    try:
        inputs = _inputs(document.get("inputs"), memoryview(body)[split:])
    except BadTensorError as error:
        raise BadRequestError(str(error)) from error
    name = document.get("id", "")
    if not isinstance(name, str):
        raise BadRequestError("id must be a string")
    binary = _flag(_parameters(document, "request"), "binary_data_output", default=False)
    return InferRequest(name, inputs, _outputs(document.get("outputs", []), binary), binary)


def render(
    request: InferRequest, model: str, version: str, outputs: list[Tensor], usage: dict[str, str]
) -> tuple[bytes, dict[str, str]]:
    """Write the answer's body and its headers.

    Args:
        request: What is answered: it says which outputs, and which of them as binary.
        model: Name of the model.
        version: Its version.
        outputs: What the model returned.
        usage: The stand-in's own account of the call, put into `parameters.standin_usage`.

    Raises:
        BadRequestError: A wanted output does not exist, or JSON can't hold it.
    """
    have = {tensor.name: tensor for tensor in outputs}
    wanted = request.outputs or dict.fromkeys(have, request.binary)
    described, tail = [], []
    for name, binary in wanted.items():
        if name not in have:
            raise BadRequestError(f"unexpected inference output '{name}' for model '{model}'")
        tensor = have[name]
        entry: dict[str, Any] = {
            "name": name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if binary:
            entry["parameters"] = {"binary_data_size": len(tensor.raw)}
            tail.append(tensor.raw)
        else:
            try:
                entry["data"] = tensor.json_data()
            except BadTensorError as error:
                raise BadRequestError(str(error)) from error
        described.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        document["id"] = request.id
    document |= {"parameters": {"standin_usage": usage}, "outputs": described}
    head = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    if not any(wanted.values()):
        return head, {"Content-Type": JSON_TYPE}
    headers = {"Content-Type": BINARY_TYPE, HEADER_LENGTH: str(len(head))}
    return b"".join([head, *tail]), headers


def _header_length(value: str | None, size: int) -> int:
    if value is None:
        return size
    if not value.isascii() or not value.isdigit() or int(value) > size:
        raise BadRequestError(f"{HEADER_LENGTH} must be an integer from 0 to the body's {size}")
    return int(value)


def _json(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise BadRequestError("a JSON object has the same key twice")
        return dict(pairs)

    def constant(name: str) -> None:
        raise BadRequestError(f"failed to parse the request JSON buffer: {name} is not JSON")

    try:
        document = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadRequestError(f"failed to parse the request JSON buffer: {error}") from error
    if not isinstance(document, dict):
        raise BadRequestError("the request must be a JSON object")
    return document


def _inputs(entries: Any, tail: memoryview) -> tuple[Tensor, ...]:
    if not isinstance(entries, list) or not entries:
        raise BadRequestError("inputs must be a list with at least one tensor")
    tensors: list[Tensor] = []
    at = 0
    for entry in entries:
        if not isinstance(entry, dict):
            raise BadRequestError("an input must be a JSON object")
        _only(entry, _INPUT_KEYS, "input")
        name, datatype, shape = _signature(entry)
        if any(tensor.name == name for tensor in tensors):
            raise BadRequestError(f"input '{name}' is there twice")
        size = _parameters(entry, f"input '{name}'").get("binary_data_size")
        if (size is None) == ("data" not in entry):
            raise BadRequestError(f"input '{name}' needs either data or binary_data_size")
        if size is None:
            tensors.append(from_json(name, datatype, shape, entry["data"]))
            continue
        if type(size) is not int or size < 0 or at + size > len(tail):
            raise BadRequestError(
                f"input '{name}': binary_data_size does not fit the {len(tail)} binary bytes"
            )
        tensors.append(from_raw(name, datatype, shape, bytes(tail[at : at + size])))
        at += size
    if at != len(tail):
        raise BadRequestError(f"{len(tail) - at} bytes after the last tensor belong to none")
    return tuple(tensors)


def _signature(entry: dict[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if not isinstance(name, str) or not name:
        raise BadRequestError("an input needs a name")
    if datatype not in DATATYPES:
        raise BadRequestError(f"input '{name}': unknown datatype {datatype!r}")
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise BadRequestError(f"input '{name}': shape must be a list of integers from 0 up")
    if math.prod(shape) > 2**31:
        raise BadRequestError(f"input '{name}': shape {shape} is too large")
    return name, datatype, tuple(shape)


def _outputs(entries: Any, binary: bool) -> dict[str, bool]:
    if not isinstance(entries, list):
        raise BadRequestError("outputs must be a list")
    wanted: dict[str, bool] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise BadRequestError("an output must be a JSON object with a name")
        _only(entry, _OUTPUT_KEYS, "output")
        name = entry["name"]
        if name in wanted:
            raise BadRequestError(f"output '{name}' is there twice")
        wanted[name] = _flag(_parameters(entry, f"output '{name}'"), "binary_data", default=binary)
    return wanted


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequestError(f"{where}: parameters must be a JSON object")
    return parameters


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise BadRequestError(f"parameter {name} must be true or false")
    return value


def _only(entry: dict[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(set(entry) - known):
        raise BadRequestError(f"unknown field {unknown[0]!r} in {what}")
