"""Whether tensors fit a model's own description."""

from __future__ import annotations

import pytest

from services.local.spec import ModelSpec, TensorSpec
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

SPEC = ModelSpec(
    "m",
    "1",
    inputs=(
        TensorSpec("x", tensors.FP32, (-1, 3)),
        TensorSpec("hint", tensors.BYTES, (-1, 1), optional=True),
    ),
    outputs=(TensorSpec("y", tensors.FP32, (-1, 1)),),
    max_batch_size=4,
)


def fp32(name: str, *shape: int, size: int | None = None) -> tensor_pb2.Tensor:
    """A tensor of zeros; `size` bytes where it is to be wrong."""
    count = tensors.element_count(shape)
    raw = bytes(4 * count if size is None else size)
    return tensor_pb2.Tensor(name=name, datatype=tensors.FP32, shape=shape, raw=raw)


def test_an_input_that_fits_has_no_violations() -> None:
    """With and without the optional input."""
    hint = tensor_pb2.Tensor(
        name="hint",
        datatype=tensors.BYTES,
        shape=[2, 1],
        raw=tensors.encode_bytes([b"a", b"b"]),
    )
    assert SPEC.violations([fp32("x", 2, 3)]) == []
    assert SPEC.violations([hint, fp32("x", 2, 3)]) == []
    assert SPEC.rows([fp32("x", 2, 3)]) == 2


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ([], ["input.tensors"]),
        ([fp32("y", 1, 3)], ["input.tensors[0].name", "input.tensors"]),
        ([fp32("x", 1, 2)], ["input.tensors[0].shape"]),
        ([fp32("x", 3)], ["input.tensors[0].shape"]),
        ([fp32("x", 5, 3)], ["input.tensors[0].shape"]),
        ([fp32("x", 0, 3)], ["input.tensors[0].shape"]),
        ([fp32("x", 1, 3, size=11)], ["input.tensors[0].raw"]),
        (
            [tensor_pb2.Tensor(name="x", datatype=tensors.BOOL, shape=[1, 9], raw=b"")],
            ["input.tensors[0].datatype", "input.tensors[0].shape"],
        ),
        (
            [
                tensor_pb2.Tensor(
                    name="hint",
                    datatype=tensors.BYTES,
                    shape=[1, 1],
                    raw=tensors.encode_bytes([b""]),
                ),
                fp32("x", 2, 3),
            ],
            ["input.tensors"],
        ),
    ],
)
def test_each_misfit_names_its_place(given: list[tensor_pb2.Tensor], fields: list[str]) -> None:
    """Every violation is found, and says where."""
    assert [field for field, _ in SPEC.violations(given)] == fields


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ([fp32("y", 2, 1)], 0),
        ([], 1),
        ([fp32("y", 1, 1)], 1),
        ([fp32("y", 2, 7)], 1),
        ([fp32("y", 2, 1), fp32("z", 2, 1)], 1),
    ],
)
def test_outputs_must_be_those_that_are_declared(
    given: list[tensor_pb2.Tensor], count: int
) -> None:
    """Names, shapes and as many rows as the input had."""
    assert len(SPEC.faults(given, 2)) == count
