"""The request with which a version is warmed up, and the asking.

The card's `example` holds a row of real statistics where our training wrote it; a model without
one is asked with zeros (texts: the word "warm-up"), every free dimension at 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.local.artifacts import CARD
from services.local.exchange import Ask
from services.local.prepare import check_output
from services.local.spec import ModelSpec, TensorSpec
from services.local.triton import TritonServer
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

_ID = "warm-up"
_WORD = b"warm-up"


def example(folder: Path) -> Mapping[str, Any]:
    """Return the example of a version's card; empty where there is none. Blocks."""
    try:
        found = json.loads((folder / CARD).read_bytes())["example"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def sample(spec: ModelSpec, values: Mapping[str, Any]) -> list[tensor_pb2.Tensor]:
    """Return an input that fits a model: the example's values where they fit, else zeros."""
    return [
        _given(tensor, values.get(tensor.name)) or _zeros(tensor)
        for tensor in spec.inputs
        if not tensor.optional
    ]


def _given(spec: TensorSpec, value: object) -> tensor_pb2.Tensor | None:
    if value is None:
        return None
    zero = _zeros(spec)
    try:
        if spec.datatype == tensors.BYTES:
            array = np.array(value, dtype=object)
            array = np.vectorize(lambda text: str(text).encode(), otypes=[object])(array)
        else:
            array = np.asarray(value, dtype=tensors.to_numpy(zero).dtype)
        tensor = tensors.from_numpy(spec.name, array)
    except (ValueError, TypeError, tensors.TensorError):
        return None
    return None if any(spec.misfits(tensor, spec.name)) else tensor


def _zeros(spec: TensorSpec) -> tensor_pb2.Tensor:
    shape = [1 if size < 0 else size for size in spec.shape]
    count = math.prod(shape)
    if spec.datatype == tensors.BYTES:
        raw = tensors.encode_bytes([_WORD] * count)
    else:
        raw = bytes(count * _width(tensors.datatype_name(spec.datatype)))
    return tensor_pb2.Tensor(name=spec.name, datatype=spec.datatype, shape=shape, raw=raw)


def _width(name: str) -> int:
    """Return the bytes of an element, by the type's name."""
    return 1 if name == "BOOL" else int("".join(c for c in name if c.isdigit())) // 8


async def warm_up(
    server: TritonServer, spec: ModelSpec, values: Mapping[str, Any], timeout: float
) -> None:
    """Ask a version once on one replica, as a caller would, and check what it answers.

    Raises:
        TritonError: it did not answer.
        InternalError: MODEL_OUTPUT_INVALID, it answered something else than it declares.
    """
    given = sample(spec, values)
    ask = Ask(spec, _ID, given)
    if not spec.decoupled:
        answer = await server.infer(ask, timeout)
        check_output(spec, answer.outputs, spec.rows(given))
        return
    async for answer in server.stream(ask, timeout):
        check_output(spec, answer.outputs, None)
