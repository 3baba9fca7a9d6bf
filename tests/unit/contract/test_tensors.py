"""Normalization, as tensor.proto's comments specify it: what both paths get, byte for byte."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpath.inference import digest, tensors
from twinpath.inference.v1 import tensor_pb2

# datatype -> (bytes of an element, the one NaN, the largest infinity without its sign)
FLOATS = {
    tensor_pb2.DATATYPE_FP16: (2, 0x7E00, 0x7C00),
    tensor_pb2.DATATYPE_BF16: (2, 0x7FC0, 0x7F80),
    tensor_pb2.DATATYPE_FP32: (4, 0x7FC00000, 0x7F800000),
    tensor_pb2.DATATYPE_FP64: (8, 0x7FF8000000000000, 0x7FF0000000000000),
}


def tensor(name: str, datatype: int, raw: bytes, count: int) -> tensor_pb2.Tensor:
    """Return a tensor of one dimension."""
    return tensor_pb2.Tensor(name=name, datatype=datatype, shape=[count], raw=raw)


def expected(bits: int, datatype: int) -> int:
    """Return what the comments say about one element, without numpy."""
    size, nan, infinity = FLOATS[datatype]
    sign = 1 << (8 * size - 1)
    if bits & ~sign > infinity:
        return nan
    return 0 if bits == sign else bits


@given(data=st.data(), datatype=st.sampled_from(sorted(FLOATS)))
def test_floats_have_one_nan_and_no_negative_zero(data: st.DataObject, datatype: int) -> None:
    """Every other bit pattern stays as it is, infinities and subnormals too."""
    size, nan, infinity = FLOATS[datatype]
    sign = 1 << (8 * size - 1)
    awkward = [0, sign, nan, nan | sign, infinity, infinity | sign, infinity + 1, sign - 1, 1]
    values = data.draw(st.lists(st.sampled_from(awkward) | st.integers(0, 2 * sign - 1)))
    raw = b"".join(value.to_bytes(size, "little") for value in values)
    (found,) = tensors.normalize([tensor("x", datatype, raw, len(values))])
    wanted = b"".join(expected(value, datatype).to_bytes(size, "little") for value in values)
    assert found.raw == wanted
    (again,) = tensors.normalize([found])
    assert again == found, "normal stays normal"


def test_truth_values_are_00_or_01() -> None:
    """Any other byte that is not 00 is true."""
    raw = bytes([0, 1, 2, 255])
    (found,) = tensors.normalize([tensor("x", tensor_pb2.DATATYPE_BOOL, raw, 4)])
    assert found.raw == bytes([0, 1, 1, 1])


@given(st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=6))
def test_tensors_stand_in_the_order_of_their_names_bytes(names: list[str]) -> None:
    """In whatever order they come, they leave in one, and so have one digest."""
    given_ = [tensor(name, tensor_pb2.DATATYPE_UINT8, b"\1", 1) for name in names]
    forward, backward = tensors.normalize(given_), tensors.normalize(given_[::-1])
    assert [t.name.encode() for t in forward] == sorted(name.encode() for name in names)
    assert digest.digest(forward) == digest.digest(backward)


def test_two_tensors_of_one_name_are_refused() -> None:
    """There would be no telling which one counts."""
    two = [tensor("x", tensor_pb2.DATATYPE_UINT8, b"\1", 1)] * 2
    with pytest.raises(tensors.TensorError) as error:
        tensors.normalize(two, "input.tensors")
    assert error.value.field == "input.tensors[1].name"


@given(st.lists(st.floats(width=32, allow_nan=True)))
def test_typed_and_raw_contents_are_the_same_input(values: list[float]) -> None:
    """Who writes elements by hand gets the digest of who packs bytes."""
    typed = tensor_pb2.Tensor(name="x", datatype=tensor_pb2.DATATYPE_FP32, shape=[len(values)])
    typed.contents.fp32_contents.extend(values)
    packed = tensor(
        "x", tensor_pb2.DATATYPE_FP32, struct.pack(f"<{len(values)}f", *values), len(values)
    )
    assert tensors.normalize([typed]) == tensors.normalize([packed])
    assert digest.digest(tensors.normalize([typed])) == digest.digest(tensors.normalize([packed]))


def test_every_part_of_a_tensor_is_in_the_digest() -> None:
    """Name, type, shape and contents: a change of any one changes it."""
    base = tensor_pb2.Tensor(
        name="x", datatype=tensor_pb2.DATATYPE_INT32, shape=[2, 1], raw=b"\1\0\0\0\2\0\0\0"
    )
    others = []
    for changes in (
        {"name": "y"},
        {"datatype": tensor_pb2.DATATYPE_UINT32},
        {"shape": [1, 2]},
        {"raw": b"\1\0\0\0\3\0\0\0"},
    ):
        other = tensor_pb2.Tensor()
        other.CopyFrom(base)
        for field, value in changes.items():
            if field == "shape":
                other.ClearField("shape")
                other.shape.extend(value)
            else:
                setattr(other, field, value)
        others.append(other)
    digests = {digest.digest([each]) for each in (base, *others)}
    assert len(digests) == 5


def test_a_digest_fits_its_tensors_alone() -> None:
    """One flipped bit, a wrong order or typed contents do not fit."""
    given_ = [tensor(n, tensor_pb2.DATATYPE_UINT8, b"\1", 1) for n in ("a", "b")]
    model_input = tensor_pb2.ModelInput(tensors=given_, digest=digest.digest(given_))
    assert digest.fits(model_input)
    flipped = tensor_pb2.ModelInput(tensors=given_, digest=model_input.digest)
    flipped.tensors[1].raw = b"\0"
    swapped = tensor_pb2.ModelInput(tensors=given_[::-1], digest=model_input.digest)
    typed = tensor_pb2.ModelInput(tensors=given_, digest=model_input.digest)
    typed.tensors[0].contents.uint_contents.append(1)
    empty = tensor_pb2.ModelInput(tensors=given_)
    for wrong in (flipped, swapped, typed, empty):
        assert not digest.fits(wrong)


@pytest.mark.parametrize(
    ("shape", "raw"), [([2], b"\0" * 4), ([1, -1], b""), ([], b""), ([3, 0], b"\0")]
)
def test_contents_that_do_not_fit_their_shape_are_refused(shape: list[int], raw: bytes) -> None:
    """What has no meaning has no digest."""
    wrong = tensor_pb2.Tensor(name="x", datatype=tensor_pb2.DATATYPE_FP32, shape=shape, raw=raw)
    with pytest.raises(tensors.TensorError):
        tensors.normalize([wrong])


def test_a_scalar_has_one_element() -> None:
    """An empty shape is a scalar's."""
    scalar = tensor_pb2.Tensor(
        name="x", datatype=tensor_pb2.DATATYPE_FP64, raw=struct.pack("<d", -0.0)
    )
    (found,) = tensors.normalize([scalar])
    assert math.copysign(1.0, struct.unpack("<d", found.raw)[0]) == 1.0
