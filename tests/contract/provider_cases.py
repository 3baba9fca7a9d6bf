"""One case for each provider: its file, a model input, and what the stand-in answers to it.

A new provider is a case here, and the whole of test_providers_contract.py runs against it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.standin.rows_wire import ACCESS_KEY
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

HEAD = """
name: standin
protocol: {protocol}
base_url: {base_url}{suffix}
token: {{file: {token_file}}}
region: eu
max_data_class: internal
{extra}
models:
"""
TEXT_MODEL = """
  - name: writer
    version: standin-chat-2026-01-01
    wire_name: standin-chat
    inputs: [{{name: text_input, datatype: BYTES, shape: [1, 1]}}]
    outputs: [{{name: text_output, datatype: BYTES, shape: [1, 1]}}]
    price: {price}
    options: {{instructions: Be brief., max_tokens: {max_tokens}}}
"""
FORM_MODEL = """
  - name: clerk
    version: standin-chat-2026-01-01
    wire_name: standin-chat
    inputs: [{{name: text_input, datatype: BYTES, shape: [1, 1]}}]
    outputs: [{{name: text_output, datatype: BYTES, shape: [1, 1]}}]
    price: {price}
    options:
      max_tokens: {max_tokens}
      answer_schema:
        type: object
        properties: {{mood: {{type: string}}, grade: {{type: integer}}}}
        required: [mood, grade]
        additionalProperties: false
"""
TABLE_MODEL = """
  - name: judge
    version: standin-chat-2026-01-01
    wire_name: standin-chat
    inputs: [{{name: features, datatype: FP32, shape: [1, 3]}}]
    outputs:
      - {{name: progression, datatype: FP32, shape: [1, 1]}}
      - {{name: label, datatype: INT64, shape: [1, 1]}}
    price: {price}
    options:
      task: tabular
      instructions: Foretell the progression.
      max_tokens: {max_tokens}
      columns: {{features: [age, bmi, bp]}}
"""
EMBED_MODEL = """
  - name: embedder
    version: standin-embed-1
    wire_name: standin-embed
    inputs: [{{name: texts, datatype: BYTES, shape: [-1]}}]
    outputs: [{{name: rows, datatype: FP32, shape: [-1, 26]}}]
    price: {price}
"""
OIP_MODEL = """
  - name: echo
    version: "1"
    inputs: [{{name: features, datatype: FP32, shape: [-1, -1]}}]
    outputs: [{{name: features, datatype: FP32, shape: [-1, -1]}}]
    price: {price}
"""
ENDPOINT_MODEL = """
  - name: scorer
    version: blue
    wire_name: standin-score
    inputs: [{{name: features, datatype: FP32, shape: [-1, 3]}}]
    outputs: [{{name: progression, datatype: FP32, shape: [-1, 1]}}]
    price: {price}
"""
TEMPLATE_MODEL = """
  - name: scorer
    version: v3
    inputs: [{{name: features, datatype: FP32, shape: [1, 3]}}]
    outputs: [{{name: progression, datatype: FP32, shape: [1, 1]}}]
    price: {price}
    options:
      path: "/score/{{{{version}}}}"
      body:
        patient:
          age: "{{{{features[0]}}}}"
          bmi: "{{{{features[1]}}}}"
          bp: "{{{{features[2]}}}}"
        note: "asked of {{{{model}}}}"
      outputs: {{progression: "result[?name=='progression'].score | [0]"}}
      version: meta.model
      refused: meta.blocked
"""
TOKEN_PRICE = """
      - {since: 2025-01-01, usd_per_million_input_tokens: 9, usd_per_million_output_tokens: 9}
      - {since: 2026-01-01, usd_per_million_input_tokens: 2.5, usd_per_million_cached_tokens: 0.25,
         usd_per_million_output_tokens: 10}
"""


def texts(name: str, shape: Sequence[int], *values: str) -> tensor_pb2.Tensor:
    """A BYTES tensor of texts."""
    raw = tensors.encode_bytes([value.encode() for value in values])
    return tensor_pb2.Tensor(name=name, datatype=tensors.BYTES, shape=shape, raw=raw)


def text_of(outputs: Sequence[tensor_pb2.Tensor]) -> str:
    """The one text of an answer."""
    (tensor,) = outputs
    return tensors.decode_bytes(tensor.raw)[0].decode()


@dataclass(frozen=True)
class Case:
    """One provider with one of its models.

    Attributes:
        name: Of the case.
        protocol: As the provider file names it.
        model: Of the item.
        version: Of the item.
        model_yaml: The model's entry in the provider file.
        given: The model input.
        expected: Checks the outputs.
        renderer: What the record must say wrote the body.
        suffix: Of the base URL.
        streams: Whether it answers in several chunks.
        says: Kinds of its answers beyond success: `content_filter`, `refusal`, `length`.
        counts: Whether the vendor counts tokens.
        extra: Further lines of the provider file.
        refusal: A fault whose error answer is a refusal by content policy.
        quota: A fault whose error answer says that the account is spent.
        secret: What the token's file holds.
        needs: A package without which the case is skipped.
        grpc: Whether it speaks gRPC: it has codes then, no HTTP statuses.
        writes_cache: Whether the vendor counts tokens written to its cache by themselves.
        breaks: The faults that its answers can have, of those that the suite plays.
    """

    name: str
    protocol: str
    model: str
    version: str
    model_yaml: str
    given: tensor_pb2.Tensor
    expected: Callable[[Sequence[tensor_pb2.Tensor]], None]
    renderer: str
    suffix: str = "/v1"
    streams: bool = False
    says: frozenset[str] = frozenset()
    counts: bool = True
    extra: str = ""
    refusal: dict[str, Any] = field(default_factory=dict)
    quota: dict[str, Any] = field(default_factory=dict)
    secret: str = "{token}"
    needs: str = ""
    grpc: bool = False
    writes_cache: bool = False
    breaks: frozenset[str] = frozenset(
        {
            "reset",
            "cut",
            "truncated",
            "wrong_content_type",
            "garbage",
            "error_inside",
            "hang",
            "drip",
        }
    )

    def __str__(self) -> str:
        return self.name

    def provider(
        self, *, extra: str = "", max_tokens: int = 64, price: str = TOKEN_PRICE
    ) -> Callable[[str, Path], str]:
        """Return what writes the provider file."""

        def write(base_url: str, token_file: Path) -> str:
            token_file.write_text(self.secret.format(token=token_file.read_text().strip()))
            head = HEAD.format(
                protocol=self.protocol, base_url=base_url, suffix=self.suffix,
                token_file=token_file, extra=f"{self.extra}\n{extra}",
            )  # fmt: skip
            return head + self.model_yaml.format(price=price, max_tokens=max_tokens)

        return write


QUESTION = "How are you today, and why?"


def _said(outputs: Sequence[tensor_pb2.Tensor]) -> None:
    assert text_of(outputs) == f"You said: {QUESTION}"


def _filled_in(outputs: Sequence[tensor_pb2.Tensor]) -> None:
    assert json.loads(text_of(outputs)) == {"mood": "0.0", "grade": 0}


def _judged(outputs: Sequence[tensor_pb2.Tensor]) -> None:
    found = {tensor.name: tensors.to_numpy(tensor) for tensor in outputs}
    assert found["progression"].tolist() == [
        [np.float32(59.0) + np.float32(32.1) + np.float32(101.0)]
    ]
    assert found["label"].tolist() == [[192]]


def _scored(outputs: Sequence[tensor_pb2.Tensor]) -> None:
    (tensor,) = outputs
    assert tensors.to_numpy(tensor).tolist() == [[pytest.approx(192.1, abs=1e-4)]]


def _embedded(outputs: Sequence[tensor_pb2.Tensor]) -> None:
    (tensor,) = outputs
    rows = tensors.to_numpy(tensor)
    assert rows.shape == (2, 26)
    assert rows[0, :3].tolist() == [2, 1, 0]
    assert rows[1, :3].tolist() == [0, 0, 3]


def _echoed(outputs: Sequence[tensor_pb2.Tensor]) -> None:
    assert list(outputs) == [TABLE]


TEXT = texts("text_input", [1, 1], QUESTION)
TABLE = tensors.from_numpy("features", np.array([[59.0, 32.1, 101.0]], dtype=np.float32))
PAIR = texts("texts", [2], "aab", "ccc")
_LLM: dict[str, Any] = {
    "version": "standin-chat-2026-01-01",
    "says": frozenset({"content_filter", "refusal", "length"}),
}
_OPENAI_REFUSAL = {"kind": "error", "status": 400, "code": "content_filter"}
_OPENAI_QUOTA = {"kind": "error", "status": 429, "code": "insufficient_quota"}
_OPENAI = {"refusal": _OPENAI_REFUSAL, "quota": _OPENAI_QUOTA}
_TEXT: dict[str, Any] = _LLM | {
    "model": "writer", "model_yaml": TEXT_MODEL, "given": TEXT, "expected": _said, "streams": True,
}  # fmt: skip
_FORM: dict[str, Any] = _LLM | {
    "model": "clerk", "model_yaml": FORM_MODEL, "given": TEXT, "expected": _filled_in,
}  # fmt: skip
_TABLE: dict[str, Any] = _LLM | {
    "model": "judge", "model_yaml": TABLE_MODEL, "given": TABLE, "expected": _judged,
}  # fmt: skip

CASES = [
    Case("openai-chat text", "openai-chat", renderer="openai-chat/1", **_TEXT, **_OPENAI),
    Case(
        "openai-chat table", "openai-chat", renderer="openai-chat/1+tabular/1", **_TABLE, **_OPENAI
    ),
    Case(
        "openai-chat as Azure has it", "openai-chat", renderer="openai-chat/1", **_TEXT, **_OPENAI,
        extra='auth: {header: api-key, scheme: ""}\nquery: {api-version: "2026-01-01"}',
    ),
    Case("openai-chat form", "openai-chat", renderer="openai-chat/1", **_FORM, **_OPENAI),
    Case("openai-responses text", "openai-responses", renderer="openai-responses/1", **_TEXT, **_OPENAI),
    Case(
        "openai-responses table", "openai-responses", renderer="openai-responses/1+tabular/1",
        **_TABLE, **_OPENAI,
    ),
    Case("openai-responses form", "openai-responses", renderer="openai-responses/1", **_FORM, **_OPENAI),
    Case(
        "openai-embeddings", "openai-embeddings", "embedder", "standin-embed-1", EMBED_MODEL, PAIR,
        _embedded, "openai-embeddings/1", quota=_OPENAI_QUOTA,
    ),
    Case(
        "anthropic text", "anthropic-messages", renderer="anthropic-messages/1", **_TEXT,
        writes_cache=True,
        quota={"kind": "error", "status": 403, "code": "billing_error"},
    ),
    Case(
        "anthropic table", "anthropic-messages", renderer="anthropic-messages/1+tabular/1", **_TABLE
    ),
    Case("anthropic form", "anthropic-messages", renderer="anthropic-messages/1", **_FORM),
    Case(
        "anthropic as its SDK of late 2026 has it", "anthropic-messages",
        renderer="anthropic-messages/1", **_TEXT,
        extra='auth: {header: Authorization, scheme: Bearer}\noptions: {api_version: "2026-10-21"}',
    ),
    Case(
        "sagemaker", "sagemaker", "scorer", "blue", ENDPOINT_MODEL, TABLE, _scored,
        "sagemaker-json/1", suffix="", counts=False, extra="options: {aws_region: eu-central-1}",
        secret=f'{{{{"access_key_id": "{ACCESS_KEY}", "secret_access_key": "{{token}}"}}}}',
        needs="botocore",
    ),
    Case(
        "template", "template", "scorer", "v3", TEMPLATE_MODEL, TABLE, _scored, "template/1:",
        suffix="", counts=False, extra="auth: {header: X-Score-Key, scheme: Key}",
        needs="jmespath",
    ),
    Case(
        "oip-http", "oip-http", "echo", "1", OIP_MODEL, TABLE, _echoed, "oip-http-binary/1",
        suffix="", counts=False,
    ),
    Case(
        "oip-grpc", "oip-grpc", "echo", "1", OIP_MODEL, TABLE, _echoed, "oip-grpc/1",
        suffix="", counts=False, needs="tritonclient.grpc", grpc=True,
        breaks=frozenset({"truncated", "hang"}),
    ),
]  # fmt: skip
