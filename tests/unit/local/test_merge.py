"""Several items as one request, and its answer cut into theirs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.local import merge
from services.local.models import Known
from services.local.prepare import Prepared
from services.local.spec import ModelSpec, TensorSpec
from services.local.triton import Ask
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

SPEC = ModelSpec(
    "m",
    "1",
    inputs=(TensorSpec("x", tensors.FP32, (-1, -1)), TensorSpec("s", tensors.BYTES, (-1, 2))),
    outputs=(),
    max_batch_size=8,
)
SINGLE = ModelSpec("one", "1", inputs=SPEC.inputs, outputs=(), max_batch_size=0)


def prepared(rows: int, width: int, seed: bytes, *, spec: ModelSpec = SPEC, rank: int = 1):
    """An item whose bytes can be told from others'."""
    raw = (seed * (4 * rows * width))[: 4 * rows * width]
    strings = tensors.encode_bytes([seed * n for n in range(2 * rows)])
    given = [
        tensor_pb2.Tensor(name="s", datatype=tensors.BYTES, shape=[rows, 2], raw=strings),
        tensor_pb2.Tensor(name="x", datatype=tensors.FP32, shape=[rows, width], raw=raw),
    ]
    ask = Ask(spec, "id", given, timeout_us=rows)
    return Prepared(Known(spec.name, "1", "READY", spec=spec), spec, ask, rows, rank, 1.0)


ITEMS = st.lists(
    st.builds(
        prepared,
        rows=st.integers(1, 8),
        width=st.integers(1, 2),
        seed=st.binary(min_size=1, max_size=3),
        spec=st.sampled_from([SPEC, SINGLE]),
        rank=st.integers(0, 1),
    ),
    max_size=12,
)


@given(items=ITEMS)
def test_every_item_stands_in_one_batch_of_its_kin(items: list[Prepared]) -> None:
    """None lost, none twice, never more rows than the model takes."""
    found = merge.batches(items)
    assert sorted(index for batch in found for index in batch) == list(range(len(items)))
    for batch in found:
        members = [items[index] for index in batch]
        assert len({merge.kinship(m) for m in members}) == 1
        if len(members) > 1:
            assert merge.kinship(members[0]) is not None
            assert sum(m.rows for m in members) <= SPEC.max_batch_size


@given(items=ITEMS)
def test_what_is_joined_is_cut_into_the_same_parts(items: list[Prepared]) -> None:
    """An echo of the joined request gives each item its own bytes back."""
    for batch in merge.batches(items):
        members = [items[index] for index in batch]
        if len(members) < 2:
            continue
        joined = merge.join(members)
        for tensor in joined.inputs:
            tensors.check_raw(tensor)
        assert joined.timeout_us == max(m.rows for m in members)
        parts = merge.cut(joined.inputs, [m.rows for m in members])
        assert parts == [list(m.ask.inputs) for m in members]


def test_kin_share_batches_as_full_as_they_go() -> None:
    """Ten rows of one kind are two requests, not ten."""
    items = [prepared(1, 1, b"a") for _ in range(10)]
    assert [len(batch) for batch in merge.batches(items)] == [8, 2]
