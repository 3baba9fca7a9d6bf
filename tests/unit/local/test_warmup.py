"""The request with which a version is warmed up."""

from __future__ import annotations

from typing import Any

import pytest

from services.local.spec import ModelSpec, TensorSpec
from services.local.triton import with_versions
from services.local.warmup import sample
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2


@pytest.mark.parametrize("name", [n for n, v in tensor_pb2.Datatype.items() if v])
def test_a_sample_fits_a_model_of_any_type(name: str) -> None:
    """Free dimensions are 1; optional inputs are left out."""
    kind: Any = tensor_pb2.Datatype.Value(name)
    inputs = (TensorSpec("a", kind, (-1, 3)), TensorSpec("b", kind, (1,), optional=True))
    spec = ModelSpec("m", "1", inputs, (), max_batch_size=4)
    given = sample(spec, {})
    assert [list(tensor.shape) for tensor in given] == [[1, 3]]
    assert not spec.violations(given)


def test_the_cards_example_is_sent_where_it_fits() -> None:
    """Zeros where it does not."""
    spec = ModelSpec(
        "m", "1", (TensorSpec("a", tensor_pb2.DATATYPE_FP32, (-1, 2)),), (), max_batch_size=4
    )
    assert tensors.to_numpy(sample(spec, {"a": [[1, 2.5]]})[0]).tolist() == [[1, 2.5]]
    for wrong in ([[1, 2, 3]], "x", [["x", "y"]], None):
        assert tensors.to_numpy(sample(spec, {"a": wrong})[0]).tolist() == [[0, 0]]
    spec = ModelSpec("m", "1", (TensorSpec("t", tensor_pb2.DATATYPE_BYTES, (1,)),), ())
    assert tensors.to_numpy(sample(spec, {"t": ["a note"]})[0]).tolist() == [b"a note"]


def test_a_configuration_is_narrowed_to_versions() -> None:
    """Whatever policy it had; what is no configuration is said."""
    text = with_versions('name: "m" version_policy { all { } } max_batch_size: 8', ["1", "3"])
    assert '"1"' in text
    assert '"3"' in text
    assert '"all"' not in text
    with pytest.raises(ValueError, match=r"config\.pbtxt"):
        with_versions("nonsense {", ["1"])
