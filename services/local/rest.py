"""Triton's HTTP door: requests of models in the Open Inference Protocol's JSON, contents as bytes.

For what is small and quick, which is nearly everything; see `fits`. Pure.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import grpc

from services.local.exchange import NAMES, VALUES, Answer, Ask, Metadata
from services.local.wire import Reply
from twinpath.inference.v1 import tensor_pb2

_MOST_BYTES = 64 * 1024
_JSON_LENGTH = b"inference-header-content-length"
# What Triton makes of its own codes; 400 stands for a few rare ones too.
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


def fits(ask: Ask) -> bool:
    """Tell whether a request may go this way.

    Triton does not notice here that nobody waits any more, so a slow model's requests don't; a
    large one's bytes would be copied once more than by gRPC.
    """
    return (
        ask.quick
        and not ask.spec.decoupled
        and sum([len(tensor.raw) for tensor in ask.inputs]) <= _MOST_BYTES
    )


@lru_cache(maxsize=1024)
def _start(name: str, version: str) -> bytes:
    path = f"/v2/models/{quote(name, safe='')}/versions/{quote(version, safe='')}/infer"
    return f"POST {path} HTTP/1.1\r\nHost: triton\r\n".encode()


def request(ask: Ask, metadata: Metadata) -> bytes:
    """Return a request's head and body."""
    parameters: dict[str, Any] = {"binary_data_output": True}
    if ask.priority:
        parameters["priority"] = ask.priority
    if ask.timeout_us:
        parameters["timeout"] = ask.timeout_us
    raws = [tensor.raw for tensor in ask.inputs]
    inputs = [
        {
            "name": tensor.name,
            "datatype": NAMES[tensor.datatype],
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(raw)},
        }
        for tensor, raw in zip(ask.inputs, raws, strict=True)
    ]
    said = json.dumps({"id": ask.id, "inputs": inputs, "parameters": parameters}).encode()
    size = len(said) + sum(map(len, raws))
    lengths = f"{_JSON_LENGTH.decode()}: {len(said)}\r\ncontent-length: {size}\r\n"
    headers = "".join(
        f"{name}: {value}\r\n" for name, value in metadata if value.isascii() and "\n" not in value
    )
    start = _start(ask.spec.name, ask.spec.version)
    return b"".join([start, headers.encode(), lengths.encode(), b"\r\n", said, *raws])


def answer(reply: Reply, bytes_out: int) -> Answer:
    """Return what a good reply says.

    Raises:
        ValueError: it is not in the protocol.
    """
    body = reply.body
    at = int(reply.headers.get(_JSON_LENGTH, len(body)))
    outputs = []
    try:
        said = json.loads(body[:at])
        for output in said.get("outputs", ()):
            end = at + output["parameters"]["binary_data_size"]
            outputs.append(
                tensor_pb2.Tensor(
                    name=output["name"],
                    datatype=VALUES.get(output["datatype"], tensor_pb2.DATATYPE_UNSPECIFIED),
                    shape=output["shape"],
                    raw=body[at:end],
                )
            )
            at = end
        version = str(said["model_version"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the answer is not in the protocol") from error
    if at != len(body):
        raise ValueError("the answer's lengths don't fit")
    return Answer(version, outputs, bytes_out, len(body))


def failure(reply: Reply) -> tuple[grpc.StatusCode, str]:
    """Return the code and the text of a bad reply, as gRPC would have them."""
    code = _CODES.get(reply.status, grpc.StatusCode.UNKNOWN)
    try:
        return code, str(json.loads(reply.body)["error"])
    except (ValueError, KeyError, TypeError):
        return code, ""
