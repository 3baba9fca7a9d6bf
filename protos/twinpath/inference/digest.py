"""The digest of a model input: SHA-256 of the canonical form that tensor.proto specifies.

Uses nothing but the standard library, so that clients can check a digest without numpy.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from twinpath.inference.v1 import tensor_pb2

DOMAIN = b"twinpath.model-input.v1\x00"

_NAMES = {
    value: name.removeprefix("DATATYPE_").encode("ascii")
    for name, value in tensor_pb2.Datatype.items()
}
_U32 = struct.Struct("<I").pack
_U64 = struct.Struct("<Q").pack


def canonical_form(tensors: Iterable[tensor_pb2.Tensor]) -> bytes:
    """Return the canonical form of tensors that are normalized and in canonical order.

    It does not normalize: a receiver must see the bytes that the sender hashed. A tensor with
    `contents` instead of `raw` has no canonical form.

    Raises:
        ValueError: a tensor has typed contents, or the names are not in ascending order.
    """
    parts = [DOMAIN, b""]
    count = 0
    last = b""
    for tensor in tensors:
        name = tensor.name.encode("utf-8")
        if count and name <= last:
            raise ValueError(f"tensor {tensor.name!r} is not in canonical order")
        if tensor.HasField("contents"):
            raise ValueError(f"tensor {tensor.name!r} has typed contents; normalize it first")
        last = name
        count += 1
        kind = _NAMES[tensor.datatype]
        shape = tensor.shape
        raw = tensor.raw
        parts += (
            _U32(len(name)),
            name,
            _U32(len(kind)),
            kind,
            _U32(len(shape)),
            struct.pack(f"<{len(shape)}q", *shape),
            _U64(len(raw)),
            raw,
        )
    parts[1] = _U32(count)
    return b"".join(parts)


def digest(tensors: Iterable[tensor_pb2.Tensor]) -> bytes:
    """Return the 32 bytes that identify these tensors. Errors are those of `canonical_form`."""
    return hashlib.sha256(canonical_form(tensors)).digest()


def fits(model_input: tensor_pb2.ModelInput) -> bool:
    """Tell whether a model input's digest is the digest of its tensors."""
    try:
        return digest(model_input.tensors) == model_input.digest
    except (ValueError, KeyError):
        return False
