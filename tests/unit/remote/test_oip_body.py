"""What the renderers write, the stand-in's own reading of the protocol understands, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgumentError
from services.remote.catalog import Model
from services.remote.oip_body import (
    HEADER_LENGTH,
    parse,
    render_binary,
    render_json,
)
from services.remote.wire import AnswerError, ErrorInsideError
from services.standin import oip
from services.standin import tensors as other
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

MODEL = Model.model_validate(
    {
        "name": "m",
        "version": "1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [-1], "optional": True}],
    }
)
FIXED = [kind for kind in tensors._CONTENTS if kind != tensors.BYTES]


@st.composite
def tensor(draw, kinds=(*FIXED, tensors.BYTES)) -> tensor_pb2.Tensor:
    """Any normalized tensor with up to 12 elements."""
    kind = draw(st.sampled_from(kinds))
    shape = draw(st.lists(st.integers(0, 3), max_size=2))
    count = int(np.prod(shape, dtype=int))
    if kind == tensors.BYTES:
        raw = tensors.encode_bytes(
            draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        )
    else:
        size = count * tensors._DTYPES[kind].itemsize
        raw = draw(st.binary(min_size=size, max_size=size))
    name = draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
    made = tensor_pb2.Tensor(name=name, datatype=kind, shape=shape, raw=raw)
    return tensors.normalize([made])[0]


@given(st.lists(tensor(), min_size=1, max_size=4, unique_by=lambda t: t.name))
def test_binary_bodies_hold_the_very_bytes_and_their_echo_comes_back(inputs) -> None:
    """Rendered, read by the stand-in, echoed, parsed: nothing has changed."""
    body = render_binary(MODEL, inputs)
    asked = oip.parse(body.content, body.headers[HEADER_LENGTH])
    assert [(t.name, t.datatype, list(t.shape), t.raw) for t in asked.inputs] == [
        (t.name, tensors.datatype_name(t.datatype), list(t.shape), t.raw) for t in inputs
    ]
    content, headers = oip.render(asked, "m", "1", list(asked.inputs), {})
    parsed = parse(content, headers["Content-Type"], headers[HEADER_LENGTH])
    assert parsed.outputs == inputs
    assert parsed.version == "1"


@given(tensor(kinds=[k for k in FIXED if k not in (tensors.FP16, tensors.BF16)]))
def test_json_bodies_mean_the_same_values(made) -> None:
    """Also the largest integers, subnormals and what only just fits; or they are refused."""
    if not np.isfinite(tensors.to_numpy(made)).all():
        with pytest.raises(InvalidArgumentError, match="NaN and infinity"):
            render_json(MODEL, [made])
        return
    body = render_json(MODEL, [made])
    asked = oip.parse(body.content, None)
    assert asked.inputs[0].raw == made.raw
    content, headers = oip.render(asked, "m", "1", list(asked.inputs), {})
    assert parse(content, headers["Content-Type"], None).outputs == [made]


def test_the_bytes_of_a_body_are_pinned_by_the_renderers_version() -> None:
    """Who changes these bytes must change the version: old records refer to it."""
    made = tensor_pb2.Tensor(name="x", datatype=tensors.FP32, shape=[1], raw=b"\x00\x00\x80\x3f")
    required = MODEL.model_copy(
        update={"outputs": [MODEL.outputs[0].model_copy(update={"optional": False})]}
    )
    binary = render_binary(required, [made])
    assert binary.renderer == "oip-http-binary/1"
    assert binary.content == (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}],'
        b'"outputs":[{"name":"x","parameters":{"binary_data":true}}]}\x00\x00\x80\x3f'
    )
    text = render_json(required, [made])
    assert text.renderer == "oip-http-json/1"
    assert text.content == (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1.0]}],'
        b'"outputs":[{"name":"x"}]}'
    )


def answer(**changes) -> bytes:
    """An answer with one output, and changes to that."""
    entry = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
    return json.dumps({"model_version": "1", "outputs": [entry | changes]}).encode()


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "json"),
        (b"\xff", "json"),
        (b"[" * 100_000, "json"),
        (b"[]", "structure"),
        (b"{}", "structure"),
        (b'{"outputs":1}', "structure"),
        (b'{"outputs":[1]}', "structure"),
        (b'{"outputs":[],"model_version":1}', "structure"),
        (b'{"outputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}', "json"),
        (answer(name=""), "structure"),
        (answer(parameters=[]), "structure"),
        (answer(shape="1"), "shape"),
        (answer(shape=[-1]), "shape"),
        (answer(shape=[True]), "shape"),
        (answer(datatype="FLOAT"), "datatype"),
        (answer(datatype=None), "datatype"),
        (answer(shape=[2]), "data"),
        (answer(data=None), "data"),
        (answer(data=["1"]), "data"),
        (answer(data=[True]), "data"),
        (answer(datatype="INT8", data=[200]), "data"),
        (answer(datatype="INT64", data=[1.5]), "data"),
        (answer(datatype="BOOL", data=[1]), "data"),
        (answer(datatype="BYTES", data=[1]), "data"),
        (answer(datatype="FP16"), "data"),
        (answer(parameters={"binary_data_size": -1}), "binary_data_size"),
        (answer(parameters={"binary_data_size": 4}), "truncated"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_named_by_its_rule(content, rule) -> None:
    """Strict in what is accepted, and no value of it is repeated."""
    with pytest.raises(AnswerError) as caught:
        parse(content, "application/json", None)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("kind", "length", "rule"),
    [
        ("text/html", None, "content_type"),
        ("application/octet-stream", None, "header_length"),
        ("application/octet-stream", "x", "header_length"),
        ("application/octet-stream", "99999", "truncated"),
    ],
)
def test_headers_that_break_the_protocol_are_named(kind, length, rule) -> None:
    """The content type, and where the JSON ends."""
    with pytest.raises(AnswerError) as caught:
        parse(answer(), kind, length)
    assert caught.value.rule == rule


def test_bytes_that_belong_to_no_output_are_refused() -> None:
    """What is not described does not pass."""
    content = answer()
    with pytest.raises(AnswerError) as caught:
        parse(content + b"\x00", "application/octet-stream", str(len(content)))
    assert caught.value.rule == "surplus_bytes"


def test_an_error_inside_a_success_is_an_error() -> None:
    """Some servers answer 200 to everything."""
    with pytest.raises(ErrorInsideError):
        parse(b'{"error":"no","outputs":[]}', "application/json", None)


def test_both_sides_know_the_same_datatypes() -> None:
    """The stand-in and the contract agree on the protocol's names."""
    assert set(other.DATATYPES) == {tensors.datatype_name(kind) for kind in tensors._CONTENTS}
