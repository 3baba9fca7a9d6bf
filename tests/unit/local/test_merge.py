"""Several items as one request, and its answer cut into theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import DataLossError, InvalidArgumentError
from services.local import merge
from services.local.models import Known
from services.local.prepare import Prepared, ask, prepare
from services.local.spec import ModelSpec, TensorSpec
from twinpath.common.v1 import context_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

SPEC = ModelSpec(
    "m",
    "1",
    inputs=(TensorSpec("x", tensors.FP32, (-1, -1)), TensorSpec("s", tensors.BYTES, (-1, 2))),
    outputs=(),
    max_batch_size=8,
    queue_timeout=True,
)
PLAIN = ModelSpec("p", "1", (TensorSpec("x", tensors.FP32, (-1, 3)),), (), max_batch_size=8)
SINGLE = ModelSpec("one", "1", inputs=SPEC.inputs, outputs=(), max_batch_size=0)
KNOWN = {spec.name: Known(spec.name, "1", "READY", spec=spec) for spec in (SPEC, PLAIN, SINGLE)}


def item(*given_: tensor_pb2.Tensor, rank: int = 1) -> inference_pb2.InferItem:
    """An item with a digest."""
    priority = [context_pb2.PRIORITY_INTERACTIVE, context_pb2.PRIORITY_NORMAL][rank]
    made = inference_pb2.InferItem(context={"id": "id", "priority": priority})
    made.input.tensors.extend(given_)
    made.input.digest = digest.digest(given_)
    return made


def prepared(
    rows: int, width: int, seed: bytes, *, spec: ModelSpec = SPEC, rank: int = 1
) -> Prepared:
    """An item whose bytes can be told from others'."""
    raw = (seed * (4 * rows * width))[: 4 * rows * width]
    strings = tensors.encode_bytes([seed * n for n in range(2 * rows)])
    made = item(
        tensor_pb2.Tensor(name="s", datatype=tensors.BYTES, shape=[rows, 2], raw=strings),
        tensor_pb2.Tensor(name="x", datatype=tensors.FP32, shape=[rows, width], raw=raw),
        rank=rank,
    )
    return prepare(made, KNOWN[spec.name], rows + 1.0, 1.0, streamed=False)


@given(
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    width=st.integers(1, 2),
    seeds=st.lists(st.binary(min_size=1, max_size=3), min_size=5, max_size=5),
)
def test_what_is_joined_is_cut_into_the_same_parts(
    rows: list[int], width: int, seeds: list[bytes]
) -> None:
    """An echo of the joined request gives each item its own bytes back; the longest time counts."""
    members = [prepared(n, width, seed) for n, seed in zip(rows, seeds, strict=False)]
    joined = ask(members)
    for tensor in joined.inputs:
        tensors.check_raw(tensor)
        assert tensor.shape[0] == sum(rows)
    assert joined.timeout_us == max(rows) * 1_000_000
    results = [inference_pb2.InferResult() for _ in members]
    merge.share(joined.inputs, rows, results)
    assert [list(r.outputs) for r in results] == [list(m.given) for m in members]


def test_kin_are_of_one_model_shape_and_priority() -> None:
    """All else may ride together; a model without batches has no kin."""
    first = prepared(1, 1, b"a").kin
    assert first is not None
    assert prepared(3, 1, b"b").kin == first
    assert prepared(1, 2, b"a").kin != first
    assert prepared(1, 1, b"a", rank=0).kin != first
    assert prepared(1, 1, b"a", spec=SINGLE).kin is None


PLAIN_TENSORS = st.integers(1, 8).flatmap(
    lambda rows: st.binary(min_size=12 * rows, max_size=12 * rows).map(
        lambda raw: tensor_pb2.Tensor(name="x", datatype=tensors.FP32, shape=[rows, 3], raw=raw)
    )
)


@given(tensor=PLAIN_TENSORS, flip=st.integers(0, 95))
def test_a_layout_that_is_known_changes_no_verdict(tensor: tensor_pb2.Tensor, flip: int) -> None:
    """The second time the digest is computed in a shorter way: it is the same, bit for bit."""
    known = Known("p", "1", "READY", spec=PLAIN)
    for _ in range(3):
        assert prepare(item(tensor), known, 2.0, 1.0, streamed=False).raws == [tensor.raw]
    (layout,) = known.layouts._known.values()
    assert layout.digest([tensor.raw]) == digest.digest([tensor])
    wrong = item(tensor)
    changed = bytearray(tensor.raw)
    changed[flip % len(changed)] ^= 1
    wrong.input.tensors[0].raw = bytes(changed)
    with pytest.raises(DataLossError):
        prepare(wrong, known, 2.0, 1.0, streamed=False)


@given(sizes=st.lists(st.integers(0, 9), min_size=2, max_size=4))
def test_the_digest_of_several_tensors_is_the_same_too(sizes: list[int]) -> None:
    """With empty tensors among them, and names of other alphabets."""
    inputs = tuple(TensorSpec(f"ä{n}", tensors.FP32, (-1,)) for n in range(len(sizes)))
    known = Known("p", "1", "READY", spec=ModelSpec("p", "1", inputs, ()))
    given_ = [
        tensor_pb2.Tensor(name=f"ä{n}", datatype=tensors.FP32, shape=[size], raw=bytes(4 * size))
        for n, size in enumerate(sizes)
    ]
    prepare(item(*given_), known, 2.0, 1.0, streamed=False)
    (layout,) = known.layouts._known.values()
    assert layout.digest([t.raw for t in given_]) == digest.digest(given_)


def test_contents_of_a_wrong_length_are_found_with_a_known_layout() -> None:
    """Though the digest fits them: shape and contents are looked at each time."""
    known = Known("p", "1", "READY", spec=PLAIN)
    good = tensor_pb2.Tensor(name="x", datatype=tensors.FP32, shape=[1, 3], raw=bytes(12))
    prepare(item(good), known, 2.0, 1.0, streamed=False)
    short = tensor_pb2.Tensor(name="x", datatype=tensors.FP32, shape=[1, 3], raw=bytes(8))
    with pytest.raises((InvalidArgumentError, DataLossError)):
        prepare(item(short), known, 2.0, 1.0, streamed=False)
    typed = item(good)
    typed.input.tensors[0].contents.fp32_contents.extend([1.0, 2.0, 3.0])
    with pytest.raises((InvalidArgumentError, DataLossError)):
        prepare(typed, known, 2.0, 1.0, streamed=False)
