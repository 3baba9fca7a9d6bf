"""Tensors between protobuf and numpy, and the normalization that comes before every digest.

A `TensorError` carries the field (such as `inputs[0].raw`) and a sentence, so that a service can
name every fault of a request at once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from twinpath.inference.v1 import tensor_pb2

BOOL = tensor_pb2.DATATYPE_BOOL
BYTES = tensor_pb2.DATATYPE_BYTES
FP16 = tensor_pb2.DATATYPE_FP16
FP32 = tensor_pb2.DATATYPE_FP32
FP64 = tensor_pb2.DATATYPE_FP64
BF16 = tensor_pb2.DATATYPE_BF16

# bfloat16 has no numpy type: it is carried as its bits.
_DTYPES: dict[int, np.dtype] = {
    tensor_pb2.DATATYPE_BOOL: np.dtype("?"),
    tensor_pb2.DATATYPE_UINT8: np.dtype("u1"),
    tensor_pb2.DATATYPE_UINT16: np.dtype("<u2"),
    tensor_pb2.DATATYPE_UINT32: np.dtype("<u4"),
    tensor_pb2.DATATYPE_UINT64: np.dtype("<u8"),
    tensor_pb2.DATATYPE_INT8: np.dtype("i1"),
    tensor_pb2.DATATYPE_INT16: np.dtype("<i2"),
    tensor_pb2.DATATYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATATYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DATATYPE_FP16: np.dtype("<f2"),
    tensor_pb2.DATATYPE_FP32: np.dtype("<f4"),
    tensor_pb2.DATATYPE_FP64: np.dtype("<f8"),
    tensor_pb2.DATATYPE_BF16: np.dtype("<u2"),
}
_BY_KIND = {(d.kind, d.itemsize): k for k, d in _DTYPES.items() if k != BF16}
# Which field of TensorContents holds which type.
_CONTENTS: dict[int, str] = {
    tensor_pb2.DATATYPE_BOOL: "bool_contents",
    tensor_pb2.DATATYPE_UINT8: "uint_contents",
    tensor_pb2.DATATYPE_UINT16: "uint_contents",
    tensor_pb2.DATATYPE_UINT32: "uint_contents",
    tensor_pb2.DATATYPE_UINT64: "uint64_contents",
    tensor_pb2.DATATYPE_INT8: "int_contents",
    tensor_pb2.DATATYPE_INT16: "int_contents",
    tensor_pb2.DATATYPE_INT32: "int_contents",
    tensor_pb2.DATATYPE_INT64: "int64_contents",
    tensor_pb2.DATATYPE_FP16: "fp32_contents",
    tensor_pb2.DATATYPE_FP32: "fp32_contents",
    tensor_pb2.DATATYPE_FP64: "fp64_contents",
    tensor_pb2.DATATYPE_BF16: "fp32_contents",
    tensor_pb2.DATATYPE_BYTES: "bytes_contents",
}
_NAN_BITS = {FP16: 0x7E00, FP32: 0x7FC00000, FP64: 0x7FF8000000000000, BF16: 0x7FC0}
_UINT_OF = {2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


class TensorError(ValueError):
    """A tensor that is not what its type and shape say. `field` names the place."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


def datatype_name(datatype: int) -> str:
    """Return the Open Inference Protocol's name, such as "FP32"."""
    return tensor_pb2.Datatype.Name(datatype).removeprefix("DATATYPE_")


def datatype_value(name: str) -> int:
    """Return the enum value for an Open Inference Protocol name. Raises ValueError."""
    return tensor_pb2.Datatype.Value(f"DATATYPE_{name}")


def element_count(shape: Sequence[int]) -> int:
    """Return how many elements a shape has; a scalar's empty shape has one."""
    return math.prod(shape)


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """Return BYTES elements in the raw form: a u32 length and the bytes, for each."""
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def decode_bytes(raw: bytes, field: str = "raw") -> list[bytes]:
    """Return the elements of a raw BYTES tensor.

    Raises:
        TensorError: a length runs past the end.
    """
    elements = []
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise TensorError(field, "ends within an element's length")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + size > len(raw):
            raise TensorError(field, f"an element of {size} bytes runs past the end")
        elements.append(raw[at : at + size])
        at += size
    return elements


def from_numpy(name: str, array: NDArray) -> tensor_pb2.Tensor:
    """Return a tensor with raw contents. Arrays of kinds O, S and U become BYTES (UTF-8)."""
    if array.dtype.kind in "OSU":
        elements = [e.encode() if isinstance(e, str) else bytes(e) for e in array.reshape(-1)]
        return tensor_pb2.Tensor(
            name=name, datatype=BYTES, shape=array.shape, raw=encode_bytes(elements)
        )
    datatype = _BY_KIND.get((array.dtype.kind, array.dtype.itemsize))
    if datatype is None:
        raise TensorError(name, f"numpy type {array.dtype} has no tensor type")
    raw = np.ascontiguousarray(array, dtype=_DTYPES[datatype]).tobytes()
    return tensor_pb2.Tensor(name=name, datatype=datatype, shape=array.shape, raw=raw)


def to_numpy(tensor: tensor_pb2.Tensor, field: str = "tensor") -> NDArray:
    """Return the array of a tensor with raw contents: read-only, without a copy where possible.

    BYTES give an object array of `bytes`; BF16 its bits as uint16.

    Raises:
        TensorError: the contents don't fit type and shape.
    """
    if tensor.datatype == BYTES:
        elements = decode_bytes(tensor.raw, f"{field}.raw")
        if len(elements) != element_count(tensor.shape):
            raise TensorError(
                f"{field}.raw", f"{len(elements)} elements, but the shape is {list(tensor.shape)}"
            )
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(tuple(tensor.shape))
    check_raw(tensor, field)
    return np.frombuffer(tensor.raw, dtype=_DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))


def check_raw(tensor: tensor_pb2.Tensor, field: str = "tensor") -> None:
    """Check that raw contents fit type and shape.

    Raises:
        TensorError: they don't; the message says what was expected.
    """
    if tensor.datatype not in _CONTENTS:
        raise TensorError(f"{field}.datatype", "must be a data type")
    for dimension in tensor.shape:
        if dimension < 0:
            raise TensorError(f"{field}.shape", f"{list(tensor.shape)} has a negative dimension")
    count = element_count(tensor.shape)
    if tensor.datatype == BYTES:
        found = len(decode_bytes(tensor.raw, f"{field}.raw"))
        if found != count:
            raise TensorError(
                f"{field}.raw", f"{found} elements, but the shape is {list(tensor.shape)}"
            )
        return
    expected = count * _DTYPES[tensor.datatype].itemsize
    if len(tensor.raw) != expected:
        raise TensorError(
            f"{field}.raw",
            f"{len(tensor.raw)} bytes, but {datatype_name(tensor.datatype)} of shape "
            f"{list(tensor.shape)} has {expected}",
        )


def _bfloat16_bits(values: NDArray) -> NDArray:
    """Round binary32 to bfloat16, to nearest, ties to even; return the bits."""
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    rounded[np.isnan(values)] = _NAN_BITS[BF16]
    return rounded


def _raw_of_contents(tensor: tensor_pb2.Tensor, field: str) -> bytes:
    name = _CONTENTS.get(tensor.datatype)
    if name is None:
        raise TensorError(f"{field}.datatype", "must be a data type")
    for other, _ in tensor.contents.ListFields():
        if other.name != name:
            kind = datatype_name(tensor.datatype)
            raise TensorError(f"{field}.contents.{other.name}", f"{kind} belongs into {name}")
    values = getattr(tensor.contents, name)
    if tensor.datatype == BYTES:
        return encode_bytes(values)
    if tensor.datatype == BF16:
        return _bfloat16_bits(np.array(values, dtype="<f4")).tobytes()
    dtype = _DTYPES[tensor.datatype]
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype=dtype).tobytes()
    except OverflowError:
        kind = datatype_name(tensor.datatype)
        raise TensorError(f"{field}.contents.{name}", f"a value does not fit {kind}") from None


# The bytes of -0.0; where they don't occur at all, at whatever place, there is no -0.0.
_NEGATIVE_ZERO = {FP32: b"\x00\x00\x00\x80", FP64: b"\x00\x00\x00\x00\x00\x00\x00\x80"}


def _is_clean(datatype: int, raw: bytes) -> bool:
    """Tell quickly that contents need no normalization; False only means to look closely."""
    zero = _NEGATIVE_ZERO.get(datatype)
    if zero is None or zero in raw:
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.add.reduce(np.frombuffer(raw, dtype=_DTYPES[datatype]))
    return math.isfinite(total)  # then no element is a NaN


def _normalized_raw(datatype: int, raw: bytes) -> bytes:
    """Return raw contents with one NaN, no -0.0, and BOOL as 00 or 01."""
    if datatype == BOOL:
        return (np.frombuffer(raw, dtype=np.uint8) != 0).tobytes()
    if datatype not in _NAN_BITS:
        return raw
    if _is_clean(datatype, raw):
        return raw
    bits = np.frombuffer(raw, dtype=_UINT_OF[_DTYPES[datatype].itemsize])
    sign = bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 1))
    infinity = {FP16: 0x7C00, FP32: 0x7F800000, FP64: 0x7FF0000000000000, BF16: 0x7F80}[datatype]
    nan = (bits & ~sign) > bits.dtype.type(infinity)
    negative_zero = bits == sign
    if not (nan.any() or negative_zero.any()):
        return raw
    bits = bits.copy()
    bits[nan] = _NAN_BITS[datatype]
    bits[negative_zero] = 0
    return bits.tobytes()


def normalize(
    tensors: Iterable[tensor_pb2.Tensor], field: str = "tensors"
) -> list[tensor_pb2.Tensor]:
    """Return new tensors as tensor.proto's normalization says, in canonical order.

    Raises:
        TensorError: contents don't fit type and shape, or a name stands twice.
    """
    out = []
    names = set()
    for index, tensor in enumerate(tensors):
        place = f"{field}[{index}]"
        if tensor.name in names:
            raise TensorError(f"{place}.name", f"{tensor.name!r} stands twice")
        names.add(tensor.name)
        raw = tensor.raw
        if tensor.HasField("contents"):
            if raw:
                raise TensorError(place, "has both raw and typed contents")
            raw = _raw_of_contents(tensor, place)
        clean = tensor_pb2.Tensor(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, raw=raw
        )
        check_raw(clean, place)
        clean.raw = _normalized_raw(tensor.datatype, raw)
        out.append(clean)
    out.sort(key=lambda t: t.name.encode("utf-8"))
    return out
