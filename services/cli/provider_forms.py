"""The files that `twinpath providers new` writes: whole, and with every choice said."""

from __future__ import annotations

import json

_HEAD = """\
# {name}: written by `twinpath providers new`. All keys: services/remote/catalog.py.
name: {name}
protocol: {protocol}
base_url: {base_url}
token: {{env: {token_env}}}
region: {region}
# The strictest class of data that it may get: public, internal or confidential; never restricted.
max_data_class: internal
{extra}models:
  - name: {model}
    version: {version}
"""
_LIMITS = """\
    limits: {requests_per_minute: 600, per_caller: {requests_per_minute: 60}}
"""
_BY_TOKENS = """\
    # In US dollars for a million tokens; a list of prices, each with `since`, is dated.
    price:
      - {since: 2026-01-01, usd_per_million_input_tokens: 1, usd_per_million_output_tokens: 4}
"""
_BY_CALLS = """\
    price: {per_call_nanos_usd: 0}
"""
_TEXT = """\
    inputs: [{name: text_input, datatype: BYTES, shape: [1, 1]}]
    outputs: [{name: text_output, datatype: BYTES, shape: [1, 1]}]
    options: {instructions: Answer briefly., max_tokens: 512}
    # A tabular task instead: `task: tabular`, FP32 inputs, and
    # `columns: {features: [age, bmi, bp]}` with the name of each element.
"""
_ROWS = """\
    inputs: [{name: features, datatype: FP32, shape: [-1, 3]}]
    outputs: [{name: score, datatype: FP32, shape: [-1, 1]}]
"""
_TEXTS = """\
    inputs: [{name: texts, datatype: BYTES, shape: [-1]}]
    outputs: [{name: rows, datatype: FP32, shape: [-1, -1]}]
"""
_FILLED = """\
    inputs: [{name: features, datatype: FP32, shape: [1, 3]}]
    outputs: [{name: score, datatype: FP32, shape: [1, 1]}]
    options:
      path: /score
      body: {row: "{{features}}"}
      outputs: {score: "result.score"}  # JMESPath
"""
_FORMS: dict[str, tuple[str, str, str]] = {
    "openai-chat": ("https://api.openai.com/v1", "", _TEXT + _BY_TOKENS),
    "openai-responses": ("https://api.openai.com/v1", "", _TEXT + _BY_TOKENS),
    "openai-embeddings": ("https://api.openai.com/v1", "", _TEXTS + _BY_TOKENS),
    "anthropic-messages": ("https://api.anthropic.com/v1", "", _TEXT + _BY_TOKENS),
    "oip-grpc": ("", "", _ROWS + _BY_CALLS),
    "oip-http": ("", "", _ROWS + _BY_CALLS),
    "sagemaker": ("", "options: {aws_region: eu-central-1}\n", _ROWS + _BY_CALLS),
    "template": ("", "", _FILLED + _BY_CALLS),
}
# A protocol without a form of its own, to be edited; one that there is not is found by the check.
_ANY = ("", "", _ROWS + _BY_CALLS)


def form(
    protocol: str, name: str, base_url: str, model: str, version: str, token_env: str, region: str
) -> str:
    """Return the text of a provider file.

    Raises:
        ValueError: The name is none, or the base URL can't be guessed.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ValueError(f"{name!r} is no name: letters, digits, - and _ only")
    usual, extra, rest = _FORMS.get(protocol, _ANY)
    if not (base_url or usual):
        raise ValueError(f"{protocol} needs --base-url")
    head = _HEAD.format(
        name=name, protocol=protocol, base_url=json.dumps(base_url or usual),
        token_env=json.dumps(token_env), region=json.dumps(region), extra=extra,
        model=json.dumps(model), version=json.dumps(version),
    )  # fmt: skip
    return head + rest + _LIMITS
