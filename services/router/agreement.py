"""Do two answers to one question agree? Pure.

Floating-point outputs agree within a tolerance, everything else when it is equal. What comes out
holds no value of either answer, only by how much they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|recorded - replayed| <= absolute + relative * |recorded|."""

    absolute: float = 0.0
    relative: float = 0.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one output compares.

    Attributes:
        name: the output's.
        agrees: every element is within the tolerance.
        elements: how many were compared.
        differing: how many are beyond the tolerance.
        max_absolute: the greatest difference, in the output's unit; 0 for what must be equal.
        max_relative: the greatest difference as a share of the recorded value.
        tolerance: what counted; None: must be equal.
        problem: why nothing could be compared.
    """

    name: str
    agrees: bool
    elements: int = 0
    differing: int = 0
    max_absolute: float = 0.0
    max_relative: float = 0.0
    tolerance: Tolerance | None = None
    problem: str = ""


def compare(
    name: str,
    tolerance: Tolerance,
    recorded: Sequence[tensor_pb2.Tensor],
    replayed: Sequence[tensor_pb2.Tensor],
) -> Agreement:
    """Compare one output of two answers."""
    was, now = _find(name, recorded), _find(name, replayed)
    if was is None or now is None:
        return Agreement(name, agrees=False, problem="one of the answers has no such output")
    if was.datatype != now.datatype:
        return Agreement(name, agrees=False, problem="the answers have different datatypes")
    try:
        before, after = tensors.to_numpy(was), tensors.to_numpy(now)
    except tensors.TensorError:
        return Agreement(name, agrees=False, problem="an answer can't be read")
    if was.datatype == tensors.BYTES and before.shape != after.shape:
        # An answer in chunks was recorded as a whole, and may be replayed in parts.
        before, after = _whole(before), _whole(after)
    if before.shape != after.shape:
        problem = f"shape {list(after.shape)}, and {list(before.shape)} was recorded"
        return Agreement(name, agrees=False, problem=problem)
    if before.dtype.kind == "f":
        return _floats(name, tolerance, before.astype("f8"), after.astype("f8"))
    differing = int(np.count_nonzero(before != after))
    return Agreement(name, agrees=not differing, elements=before.size, differing=differing)


def _floats(
    name: str, tolerance: Tolerance, before: NDArray[np.float64], after: NDArray[np.float64]
) -> Agreement:
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where(same, 0.0, np.abs(before - after))
        share = np.where(same, 0.0, difference / np.abs(before))
    # Written so that a NaN on one side alone is beyond every tolerance.
    within = same | (difference <= tolerance.absolute + tolerance.relative * np.abs(before))
    differing = int(np.count_nonzero(~within))
    return Agreement(
        name,
        agrees=not differing,
        elements=before.size,
        differing=differing,
        max_absolute=_greatest(difference),
        max_relative=_greatest(share),
        tolerance=tolerance,
    )


def _greatest(values: NDArray[np.float64]) -> float:
    return float(np.nan_to_num(values, nan=np.inf, posinf=np.inf).max()) if values.size else 0.0


def _find(name: str, outputs: Sequence[tensor_pb2.Tensor]) -> tensor_pb2.Tensor | None:
    return next((tensor for tensor in outputs if tensor.name == name), None)


def _whole(texts: NDArray[np.object_]) -> NDArray[np.object_]:
    joined = np.empty(1, dtype=object)
    joined[0] = b"".join(texts.reshape(-1).tolist())
    return joined
