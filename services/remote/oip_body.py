"""Bodies of the Open Inference Protocol v2 over HTTP: written and read. No I/O.

How a model input becomes a body has a version, because the body's digest stands in the record:
whoever reads it later has to know which code wrote it. Any change of the bytes is a new version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

from services.chassis.errors import InvalidArgumentError
from services.remote.catalog import Model
from services.remote.wire import (
    JSON_TYPE,
    AnswerError,
    Body,
    ErrorInsideError,
    Parsed,
    dump,
    load_object,
)
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_TYPE = "application/octet-stream"
_NOT_IN_JSON = (tensors.FP16, tensors.BF16)


def _wanted(names: Sequence[str], parameters: dict[str, Any]) -> list[dict[str, Any]]:
    extra = {"parameters": parameters} if parameters else {}
    return [{"name": name, **extra} for name in names]


def _all_outputs(model: Model) -> tuple[str, ...]:
    """Return the names of the outputs to ask for; none where some are optional."""
    if any(output.optional for output in model.outputs):
        return ()
    return tuple(output.name for output in model.outputs)


@lru_cache(maxsize=1024)
def _binary_head(
    given: tuple[tuple[str, int, tuple[int, ...], int], ...], outputs: tuple[str, ...]
) -> tuple[bytes, str]:
    """Return the JSON before the tensors' bytes, and its length: the same for equal shapes."""
    document: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "datatype": tensors.datatype_name(datatype),
                "shape": shape,
                "parameters": {"binary_data_size": size},
            }
            for name, datatype, shape, size in given
        ]
    }
    if outputs:
        document["outputs"] = _wanted(outputs, {"binary_data": True})
    else:
        document["parameters"] = {"binary_data_output": True}
    head = dump(document)
    return head, str(len(head))


def render_binary(model: Model, given: Sequence[tensor_pb2.Tensor], path: str = "") -> Body:
    """Write tensors by the binary extension: the very bytes that were digested."""
    raws = [tensor.raw for tensor in given]
    head, length = _binary_head(
        tuple(
            (tensor.name, tensor.datatype, tuple(tensor.shape), len(raw))
            for tensor, raw in zip(given, raws, strict=True)
        ),
        _all_outputs(model),
    )
    headers = {"Content-Type": BINARY_TYPE, HEADER_LENGTH: length}
    return Body(b"".join([head, *raws]), headers, "oip-http-binary/1", path)


def render_json(model: Model, given: Sequence[tensor_pb2.Tensor], path: str = "") -> Body:
    """Write tensors as JSON numbers and strings, for vendors without the binary extension.

    FP32 is written as the decimal form of the same value in FP64, so nothing is rounded.

    Raises:
        InvalidArgumentError: TENSOR_NOT_RENDERABLE: JSON has no form for a value or data type.
    """
    inputs = []
    for index, tensor in enumerate(given):
        inputs.append(
            {
                "name": tensor.name,
                "datatype": tensors.datatype_name(tensor.datatype),
                "shape": list(tensor.shape),
                "data": json_data(tensor, f"input.tensors[{index}].raw"),
            }
        )
    document: dict[str, Any] = {"inputs": inputs}
    if wanted := _all_outputs(model):
        document["outputs"] = _wanted(wanted, {})
    return Body(dump(document), {"Content-Type": JSON_TYPE}, "oip-http-json/1", path)


RENDERERS: dict[str, Callable[[Model, Sequence[tensor_pb2.Tensor], str], Body]] = {
    "binary": render_binary,
    "json": render_json,
}


def parse(content: bytes, content_type: str, header_length: str | None) -> Parsed:
    """Read an answer strictly.

    Args:
        content: The body.
        content_type: Its media type, without parameters.
        header_length: Value of `Inference-Header-Content-Length`, if there is one.

    Raises:
        AnswerError: It breaks the protocol.
        ErrorInsideError: It holds an error.
    """
    if content_type not in (JSON_TYPE, BINARY_TYPE):
        raise AnswerError("content_type")
    split, read = len(content), _head
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()):
            raise AnswerError("header_length")
        split = int(header_length)
        if split > len(content):
            raise AnswerError("truncated")
        if split <= _SMALL_HEAD:
            read = _known_head
    elif content_type == BINARY_TYPE:
        raise AnswerError("header_length")
    version, slots = read(content[:split])
    outputs = []
    at = split
    for slot in slots:
        tensor, at = _output(slot, content, at)
        outputs.append(tensor)
    if at != len(content):
        raise AnswerError("surplus_bytes")
    return Parsed(outputs, version)


class _Slot(NamedTuple):
    """What an answer's JSON says of one output: its contents are `data`, or so many bytes."""

    name: str
    datatype: tensor_pb2.Datatype
    shape: tuple[int, ...]
    size: int | None
    data: Any


def _head(text: bytes) -> tuple[str, list[_Slot]]:
    """Return the model version and the outputs that an answer's JSON names."""
    document = load_object(text)
    if "error" in document:
        raise ErrorInsideError
    entries = document.get("outputs")
    version = document.get("model_version", "")
    if not isinstance(entries, list) or not isinstance(version, str):
        raise AnswerError("structure")
    return version, [_slot(entry) for entry in entries]


# Answers to questions of equal shape mostly begin with the same bytes.
_SMALL_HEAD = 1024
_known_head = lru_cache(maxsize=1024)(_head)


def _slot(entry: Any) -> _Slot:
    if not isinstance(entry, dict):
        raise AnswerError("structure")
    name, shape, parameters = entry.get("name"), entry.get("shape"), entry.get("parameters", {})
    if not isinstance(name, str) or not name or not isinstance(parameters, dict):
        raise AnswerError("structure")
    if not isinstance(shape, list) or any(
        type(size) is not int or not 0 <= size < 2**31 for size in shape
    ):
        raise AnswerError("shape")
    try:
        value = tensors.datatype_value(str(entry.get("datatype")))
    except ValueError:
        raise AnswerError("datatype") from None
    datatype = cast("tensor_pb2.Datatype", value)  # the generated stubs say int
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise AnswerError("binary_data_size")
    return _Slot(name, datatype, tuple(shape), size, entry.get("data"))


def _output(slot: _Slot, content: bytes, at: int) -> tuple[tensor_pb2.Tensor, int]:
    """Return an output, and where the next one's bytes begin."""
    name, datatype, shape, size, data = slot
    if size is None:
        raw = raw_of_json(datatype, list(shape), data)
    elif at + size > len(content):
        raise AnswerError("truncated")
    else:
        raw = content[at : at + size]
        at += size
    tensor = tensor_pb2.Tensor(name=name, datatype=datatype, shape=shape, raw=raw)
    try:
        tensors.check_raw(tensor)
    except tensors.TensorError:
        raise AnswerError("contents") from None
    return tensor, at


def raw_of_json(datatype: tensor_pb2.Datatype, shape: list[int], data: Any) -> bytes:
    """Return raw contents of a JSON `data` list, flat or nested."""
    if not isinstance(data, list) or datatype in _NOT_IN_JSON:
        raise AnswerError("data")
    while data and all(isinstance(row, list) for row in data):
        data = [value for row in data for value in row]
    try:
        clean = _typed(datatype, data)
        message = tensor_pb2.Tensor(name="output", datatype=datatype, shape=shape, contents=clean)
        return tensors.normalize([message])[0].raw
    except (TypeError, ValueError, OverflowError):
        raise AnswerError("data") from None


def _typed(datatype: int, data: list[Any]) -> tensor_pb2.TensorContents:
    """Return JSON values as typed contents; raises TypeError for a value of another type."""
    if datatype == tensors.BYTES:
        if any(type(value) is not str for value in data):
            raise TypeError
        return tensor_pb2.TensorContents(bytes_contents=[value.encode() for value in data])
    if datatype == tensors.BOOL:
        if any(type(value) is not bool for value in data):
            raise TypeError
        return tensor_pb2.TensorContents(bool_contents=data)
    numbers = (int, float) if datatype in (tensors.FP32, tensors.FP64) else (int,)
    if any(type(value) not in numbers for value in data):
        raise TypeError
    return tensor_pb2.TensorContents(**{_CONTENTS[datatype]: data})


_CONTENTS: dict[int, str] = {
    tensor_pb2.DATATYPE_UINT8: "uint_contents",
    tensor_pb2.DATATYPE_UINT16: "uint_contents",
    tensor_pb2.DATATYPE_UINT32: "uint_contents",
    tensor_pb2.DATATYPE_UINT64: "uint64_contents",
    tensor_pb2.DATATYPE_INT8: "int_contents",
    tensor_pb2.DATATYPE_INT16: "int_contents",
    tensor_pb2.DATATYPE_INT32: "int_contents",
    tensor_pb2.DATATYPE_INT64: "int64_contents",
    tensors.FP32: "fp32_contents",
    tensors.FP64: "fp64_contents",
}


def json_data(tensor: tensor_pb2.Tensor, field: str) -> list[Any]:
    """Return the elements, flat, as JSON has them; raises InvalidArgumentError."""
    if tensor.datatype in _NOT_IN_JSON:
        raise _not_renderable(field, "JSON has no form for this data type")
    if tensor.datatype == tensors.BYTES:
        try:
            return [element.decode() for element in tensors.decode_bytes(tensor.raw, field)]
        except UnicodeDecodeError:
            raise _not_renderable(field, "an element is not UTF-8") from None
    values: list[Any] = tensors.to_numpy(tensor).reshape(-1).tolist()
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise _not_renderable(field, "JSON has no form for NaN and infinity")
    return values


def _not_renderable(field: str, text: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "TENSOR_NOT_RENDERABLE", f"{field}: {text}", violations=[(field, text)]
    )
