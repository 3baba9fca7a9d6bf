"""Output tensors as plain Python values; NumPy only for those who ask for it."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twinpath.inference.v1 import tensor_pb2

if TYPE_CHECKING:
    import numpy as np

_PREFIX = len("DATATYPE_")
_LENGTH = struct.Struct("<I")
# struct's letter for each type; bfloat16 is read as its bits.
_LETTERS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
    "BF16": "H",
}
_DTYPES = {
    "BOOL": "?",
    **{
        f"{sign}{bits}": f"<{sign[0].lower()}{bits // 8}"
        for sign in ("UINT", "INT")
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One output.

    Attributes:
        name: As the task's contract names it.
        datatype: "FP32", "INT64", "BYTES", ... of the Open Inference Protocol.
        shape: Its dimensions; empty: a scalar.
        raw: The elements, row by row, little-endian.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    @classmethod
    def from_message(cls, message: tensor_pb2.Tensor) -> Tensor:
        """Read a tensor whose contents are in `raw`, as they are in every reply."""
        name = tensor_pb2.Datatype.Name(message.datatype)[_PREFIX:]
        return cls(message.name, name, tuple(message.shape), message.raw)

    def flat(self) -> list[Any]:
        """Return the elements in one list: bool, int, float, or bytes for BYTES.

        Raises:
            ValueError: The bytes don't fit the type and the shape.
        """
        count = math.prod(self.shape)
        found = self._byte_strings() if self.datatype == "BYTES" else self._numbers(count)
        if len(found) != count:
            raise ValueError(f"{self.name}: {len(found)} elements, but the shape is {self.shape}")
        return found

    def tolist(self) -> Any:
        """Return nested lists of the tensor's shape; a bare value for a scalar."""
        return _nested(self.flat(), self.shape)

    def item(self) -> Any:
        """Return the only element.

        Raises:
            ValueError: There is not exactly one.
        """
        found = self.flat()
        if len(found) != 1:
            raise ValueError(f"{self.name} has {len(found)} elements, not one")
        return found[0]

    def text(self) -> str:
        """Return all elements of a BYTES tensor as one text.

        Raises:
            ValueError: It is no BYTES tensor, or not UTF-8.
        """
        if self.datatype != "BYTES":
            raise ValueError(f"{self.name} is {self.datatype}, not BYTES")
        return b"".join(self.flat()).decode()

    def numpy(self) -> np.ndarray:
        """Return a NumPy array, read-only; objects of bytes for BYTES, float32 for BF16.

        Raises:
            ImportError: NumPy is not installed.
        """
        import numpy  # noqa: ICN001, PLC0415 - only for those who have it and ask for it

        if self.datatype in _DTYPES:
            return numpy.frombuffer(self.raw, _DTYPES[self.datatype]).reshape(self.shape)
        kind = object if self.datatype == "BYTES" else numpy.float32
        return numpy.array(self.flat(), dtype=kind).reshape(self.shape)

    def _numbers(self, count: int) -> list[Any]:
        form = struct.Struct(f"<{count}{_LETTERS[self.datatype]}")
        if form.size != len(self.raw):
            raise ValueError(
                f"{self.name}: {len(self.raw)} bytes for {count} elements of {self.datatype}"
            )
        found = list(form.unpack(self.raw))
        if self.datatype == "BF16":  # the upper half of a float's bits
            return [struct.unpack("<f", _LENGTH.pack(bits << 16))[0] for bits in found]
        return found

    def _byte_strings(self) -> list[bytes]:
        found, at = [], 0
        while at < len(self.raw):
            if at + 4 > len(self.raw):
                raise ValueError(f"{self.name}: the bytes end within a length")
            (size,) = _LENGTH.unpack_from(self.raw, at)
            at += 4
            if at + size > len(self.raw):
                raise ValueError(f"{self.name}: the bytes end within an element")
            found.append(self.raw[at : at + size])
            at += size
        return found


def _nested(flat: Sequence[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return list(flat)
    step = math.prod(shape[1:])
    return [_nested(flat[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]
