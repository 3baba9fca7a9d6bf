"""The stand-in vendor's own tensors: Open Inference Protocol datatypes, raw bytes, JSON values.

Written apart from the product's code on purpose, so that each checks the other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Datatype: numpy's little-endian form. BF16 has none and stays raw; BYTES is length-prefixed.
NUMPY_OF: dict[str, str] = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
WIDTH: dict[str, int] = {name: np.dtype(code).itemsize for name, code in NUMPY_OF.items()} | {
    "BF16": 2
}
DATATYPES = (*NUMPY_OF, "BF16", "BYTES")
BINARY_ONLY = ("FP16", "BF16")  # JSON has no form for them
_INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")


class BadTensorError(ValueError):
    """What was sent is not a tensor of its datatype and shape."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor.

    Attributes:
        name: Its name.
        datatype: One of `DATATYPES`.
        shape: Its dimensions, row-major.
        raw: Contents, little-endian; BYTES elements each follow a 4-byte length.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def array(self) -> Array:
        """As numpy, for a model; raises BadTensorError for BF16, which numpy does not have."""
        if self.datatype == "BYTES":
            elements = np.array(split_bytes(self.raw, self.count, self.name), dtype=object)
            return elements.reshape(self.shape)
        if self.datatype not in NUMPY_OF:
            raise BadTensorError(f"tensor '{self.name}': no model here takes {self.datatype}")
        return np.frombuffer(self.raw, NUMPY_OF[self.datatype]).reshape(self.shape)

    def json_data(self) -> list[Any]:
        """As the flat `data` list of a JSON answer; raises BadTensorError if JSON can't hold it."""
        if self.datatype in BINARY_ONLY:
            raise BadTensorError(
                f"tensor '{self.name}': {self.datatype} needs binary_data, JSON has no form for it"
            )
        if self.datatype == "BYTES":
            try:
                return [b.decode() for b in split_bytes(self.raw, self.count, self.name)]
            except UnicodeDecodeError as error:
                raise BadTensorError(f"tensor '{self.name}': BYTES is not UTF-8") from error
        values: list[Any] = np.frombuffer(self.raw, NUMPY_OF[self.datatype]).tolist()
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise BadTensorError(
                f"tensor '{self.name}': NaN and infinity need binary_data, JSON has no form for it"
            )
        return values


def from_array(name: str, datatype: str, array: Array) -> Tensor:
    """A tensor from what a model returned; numpy strings become BYTES."""
    if datatype == "BYTES":
        parts = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
        return Tensor(name, datatype, array.shape, join_bytes(parts))
    little = np.ascontiguousarray(array, dtype=NUMPY_OF[datatype])
    return Tensor(name, datatype, array.shape, little.tobytes())


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Tensor:
    """Check raw contents against datatype and shape; raises BadTensorError."""
    count = math.prod(shape)
    if datatype == "BYTES":
        split_bytes(raw, count, name)
    elif len(raw) != count * WIDTH[datatype]:
        need = count * WIDTH[datatype]
        raise BadTensorError(
            f"tensor '{name}': {datatype} of shape {list(shape)} takes {need} bytes, got {len(raw)}"
        )
    elif datatype == "BOOL" and raw.strip(b"\x00\x01"):
        raise BadTensorError(f"tensor '{name}': a BOOL byte is neither 0 nor 1")
    return Tensor(name, datatype, shape, raw)


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Tensor:
    """Check a JSON `data` list, flat or nested by the shape; raises BadTensorError."""
    if datatype in BINARY_ONLY:
        raise BadTensorError(f"tensor '{name}': {datatype} must be sent as binary data")
    if not isinstance(data, list):
        raise BadTensorError(f"tensor '{name}': data must be a list")
    flat = _flatten(name, data, shape)
    check = _CHECKS[datatype]
    for position, value in enumerate(flat):
        if not check(value):
            raise BadTensorError(f"tensor '{name}': element {position} is not a {datatype}")
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, join_bytes([value.encode() for value in flat]))
    with np.errstate(over="ignore"):
        array = np.array(flat, dtype=NUMPY_OF[datatype])
    if not np.isfinite(array.astype(np.float64)).all():
        raise BadTensorError(f"tensor '{name}': a value is out of the range of {datatype}")
    return Tensor(name, datatype, shape, array.tobytes())


def split_bytes(raw: bytes, count: int, name: str) -> list[bytes]:
    """Split length-prefixed BYTES contents into `count` elements; raises BadTensorError."""
    elements, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise BadTensorError(f"tensor '{name}': a BYTES length is cut off")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + length > len(raw):
            raise BadTensorError(f"tensor '{name}': a BYTES element is cut off")
        elements.append(raw[at : at + length])
        at += length
    if len(elements) != count:
        raise BadTensorError(f"tensor '{name}': {len(elements)} BYTES elements, shape says {count}")
    return elements


def join_bytes(elements: list[bytes]) -> bytes:
    """The length-prefixed form of BYTES elements."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def _flatten(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    count = math.prod(shape)
    if not any(isinstance(value, list) for value in data):
        if len(data) != count:
            raise BadTensorError(
                f"tensor '{name}': {len(data)} elements, shape {list(shape)} says {count}"
            )
        return data
    rows: list[Any] = [data]
    for size in shape:
        if any(not isinstance(row, list) or len(row) != size for row in rows):
            raise BadTensorError(f"tensor '{name}': nested data does not fit shape {list(shape)}")
        rows = [value for row in rows for value in row]
    return rows


def _is_integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**1023


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "BOOL": lambda value: type(value) is bool,
    "FP32": _is_number,
    "FP64": lambda value: type(value) in (int, float),
    "BYTES": lambda value: type(value) is str,
}
for _name in _INTEGERS:
    _range = np.iinfo(np.dtype(NUMPY_OF[_name]))
    _CHECKS[_name] = _is_integer(int(_range.min), int(_range.max))
