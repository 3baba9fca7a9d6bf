"""The Open Inference Protocol over HTTP: what is sent, what is read, and what goes by gRPC."""

from __future__ import annotations

import json

import grpc
import numpy as np
import pytest

from services.local import rest
from services.local.exchange import Ask
from services.local.spec import ModelSpec
from services.local.wire import Reply
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

SPEC = ModelSpec("a b", "1", (), ())
ROWS = tensors.from_numpy("x", np.array([[1, 2], [3, 4]], np.float32))
WORDS = tensors.from_numpy("w", np.array(["é", ""], dtype=object))


def parted(request: bytes) -> tuple[str, dict[str, str], dict, bytes]:
    """A request's first line, headers, JSON and contents."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    at = int(headers["inference-header-content-length"])
    return first, headers, json.loads(body[:at]), body[at:]


def reply(said: object, contents: bytes = b"", status: int = 200) -> Reply:
    """An answer."""
    text = json.dumps(said).encode()
    return Reply(status, {b"inference-header-content-length": b"%d" % len(text)}, text + contents)


def test_a_request_has_the_contents_as_they_came() -> None:
    """No byte of them is changed; priority and time for the queue are said."""
    ask = Ask(SPEC, "é\r\n", [ROWS, WORDS], priority=2, timeout_us=500)
    metadata = [("traceparent", "00-1"), ("evil", "a\r\nx: y"), ("other", "é")]
    first, headers, said, contents = parted(rest.request(ask, metadata))
    assert first == "POST /v2/models/a%20b/versions/1/infer HTTP/1.1"
    assert headers["traceparent"] == "00-1"
    assert not {"evil", "x", "other"} & headers.keys()
    assert contents == ROWS.raw + WORDS.raw
    assert said["id"] == "é\r\n"
    assert said["parameters"] == {"binary_data_output": True, "priority": 2, "timeout": 500}
    assert [(i["name"], i["datatype"], i["shape"]) for i in said["inputs"]] == [
        ("x", "FP32", [2, 2]),
        ("w", "BYTES", [2]),
    ]


def test_an_answer_is_cut_into_its_outputs() -> None:
    """In their order, each with its own bytes."""
    outputs = [
        {"name": "x", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
        {"name": "e", "datatype": "INT8", "shape": [0], "parameters": {"binary_data_size": 0}},
        {
            "name": "w",
            "datatype": "BYTES",
            "shape": [2],
            "parameters": {"binary_data_size": len(WORDS.raw)},
        },
    ]
    found = rest.answer(
        reply({"model_version": "7", "outputs": outputs}, ROWS.raw + WORDS.raw), 100
    )
    assert (found.version, found.bytes_out) == ("7", 100)
    assert found.outputs == [
        ROWS,
        tensor_pb2.Tensor(name="e", datatype=tensor_pb2.DATATYPE_INT8, shape=[0]),
        WORDS,
    ]


@pytest.mark.parametrize(
    ("said", "contents"),
    [
        ([], b""),
        ({}, b""),
        ({"model_version": "1", "outputs": [{"name": "x"}]}, b""),
        ({"model_version": "1", "outputs": []}, b"left"),
        (
            {
                "model_version": "1",
                "outputs": [
                    {
                        "name": "x",
                        "datatype": "INT8",
                        "shape": [9],
                        "parameters": {"binary_data_size": 9},
                    }
                ],
            },
            b"short",
        ),
    ],
)
def test_an_answer_that_is_not_in_the_protocol_is_an_error(said: object, contents: bytes) -> None:
    """Never half of it."""
    with pytest.raises(ValueError, match=r"protocol|lengths"):
        rest.answer(reply(said, contents), 0)


def test_a_failure_has_grpcs_code_and_tritons_text() -> None:
    """What is no JSON has no text; a status that Triton does not send is UNKNOWN."""
    found = rest.failure(Reply(503, {}, b'{"error":"Exceeds maximum queue size"}'))
    assert found == (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    assert rest.failure(Reply(404, {}, b"<html>")) == (grpc.StatusCode.NOT_FOUND, "")
    assert rest.failure(Reply(418, {}, b"[]")) == (grpc.StatusCode.UNKNOWN, "")


def test_slow_streamed_and_large_requests_go_by_grpc() -> None:
    """There a call can be cancelled, answer many times, and carry bytes without a copy more."""
    large = tensors.from_numpy("x", np.zeros((1, 20_000), np.float32))
    streamed = ModelSpec("a", "1", (), (), decoupled=True)
    assert rest.fits(Ask(SPEC, "", [ROWS], quick=True))
    assert not rest.fits(Ask(SPEC, "", [ROWS]))
    assert not rest.fits(Ask(SPEC, "", [large], quick=True))
    assert not rest.fits(Ask(streamed, "", [ROWS], quick=True))
