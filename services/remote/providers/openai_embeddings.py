"""Embeddings as OpenAI offers them, and many others: texts in, one FP32 row for each out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
from pydantic import Field

from services.remote import failures
from services.remote.bulk_openai import OpenAiBatches
from services.remote.catalog import Model, Options, Provider
from services.remote.oip_body import json_data
from services.remote.provider import Ask, no_stream
from services.remote.providers.openai_chat import special, usage_of
from services.remote.tracing import GenAi
from services.remote.wire import JSON_TYPE, AnswerError, Body, Parsed, Reply, dig, dump, json_answer
from services.remote.yaml_lines import Mistake
from twinpath.inference import tensors

RENDERER = "openai-embeddings/1"
_FP32_MAX = float(np.finfo(np.float32).max)


class ModelOptions(Options):
    """Of one model.

    Attributes:
        dimensions: How long a row is asked to be; absent: as the vendor has it.
    """

    dimensions: int | None = Field(default=None, ge=1)


class ProviderOptions(Options):
    """None."""


def check(model: Model) -> Iterator[Mistake]:
    """Yield where a model's tensors are no texts in and rows out."""
    if [entry.datatype for entry in model.inputs] != ["BYTES"]:
        yield ("inputs",), "one BYTES tensor: the texts"
    if [(entry.datatype, len(entry.shape)) for entry in model.outputs] != [("FP32", 2)]:
        yield ("outputs",), "one FP32 tensor with a row for each text"


class Dialect:
    """See `provider.Dialect`."""

    probe_path = "/models"
    gen_ai = GenAi("embeddings", "openai")
    in_bulk = OpenAiBatches()

    def __init__(self, provider: Provider) -> None:
        del provider

    def streams(self, model: Model) -> bool:
        """Never."""
        del model
        return False

    def longest_answer(self, model: Model) -> int:
        """None: tokens out are not what is counted here."""
        del model
        return 0

    def body(self, ask: Ask, *, stream: bool) -> Body:
        """Write a request for all texts."""
        del stream
        texts = json_data(ask.tensors[0], "input.tensors[0].raw")
        document: dict[str, Any] = {
            "model": ask.model.on_wire,
            "input": texts,
            "encoding_format": "float",
        }
        dimensions = ModelOptions.of(ask.model).dimensions
        if dimensions is not None:
            document["dimensions"] = dimensions
        return Body(dump(document), {"Content-Type": JSON_TYPE}, RENDERER, "/embeddings")

    def answer(self, ask: Ask, reply: Reply) -> Parsed:
        """Read the rows into the order of the texts."""
        document = json_answer(reply)
        data = dig(document, "data", kind=list)
        rows = {dig(entry, "index", kind=int): dig(entry, "embedding", kind=list) for entry in data}
        # In a batch the question is gone by now; what a task wants, its output contract says.
        wanted = len(tensors.decode_bytes(ask.tensors[0].raw)) if ask.tensors else len(data)
        if sorted(rows) != list(range(wanted)) or len(data) != wanted:
            raise AnswerError("rows")
        numbers = [rows[index] for index in range(wanted)]
        if any(
            type(value) not in (int, float) or not abs(value) <= _FP32_MAX
            for row in numbers
            for value in row
        ) or len({len(row) for row in numbers}) > 1:  # fmt: skip
            raise AnswerError("data")
        (entry,) = ask.model.outputs
        matrix = np.array(numbers, dtype=np.float32).reshape(wanted, -1)
        version = dig(document, "model", kind=str)
        clean = tensors.normalize([tensors.from_numpy(entry.name, matrix)])
        return Parsed(clean, version, usage=usage_of(document))

    def refused(self, reply: Reply) -> failures.Failure | bool | None:
        """As in chat completions."""
        return special(reply)

    def decoder(self, ask: Ask) -> NoReturn:
        """Never called: see `streams`."""
        no_stream(ask)
