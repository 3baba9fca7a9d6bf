"""Anthropic's messages. The base URL ends with `/v1`.

A task with a schema is forced to it by a tool that the model must use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.remote import failures
from services.remote.bulk_anthropic import AnthropicBatches
from services.remote.catalog import Model, Options, Provider
from services.remote.catalog_access import Auth
from services.remote.prompts import (
    SCHEMA_NAME,
    PromptOptions,
    form,
    object_outputs,
    question,
    sampled,
    text_output,
)
from services.remote.prompts import check as check_prompt
from services.remote.provider import Ask, Tensors
from services.remote.tracing import GenAi
from services.remote.wire import (
    JSON_TYPE,
    AnswerError,
    Body,
    CutAnswerError,
    ErrorInsideError,
    Event,
    Parsed,
    Reply,
    Usage,
    count,
    dig,
    dump,
    json_answer,
    load_object,
)
from services.remote.yaml_lines import Mistake
from twinpath.inference.v1 import inference_pb2

RENDERER = "anthropic-messages/1"
_LENGTH = inference_pb2.FINISH_REASON_LENGTH
_FILTERED = inference_pb2.FINISH_REASON_CONTENT_FILTER
_FINISH = {
    "end_turn": inference_pb2.FINISH_REASON_STOP,
    "stop_sequence": inference_pb2.FINISH_REASON_STOP,
    "tool_use": inference_pb2.FINISH_REASON_STOP,
    "max_tokens": _LENGTH,
    "model_context_window_exceeded": _LENGTH,
    "refusal": _FILTERED,
}


class ModelOptions(PromptOptions):
    """Of one model."""


class ProviderOptions(Options):
    """Of the provider.

    Attributes:
        api_version: The header `anthropic-version`.
    """

    api_version: str = "2023-06-01"


def check(model: Model) -> Iterator[Mistake]:
    """Yield where a model's tensors don't fit its task."""
    yield from check_prompt(model)


class Dialect:
    """See `provider.Dialect`."""

    probe_path = "/models"
    gen_ai = GenAi("chat", "anthropic")
    auth = Auth(header="x-api-key", scheme="")

    def __init__(self, provider: Provider) -> None:
        self._headers = {"anthropic-version": ProviderOptions.of(provider).api_version}
        self.in_bulk = AnthropicBatches(self._headers)

    def streams(self, model: Model) -> bool:
        """Text streams; a JSON object is of no use in part."""
        return ModelOptions.of(model).free

    def longest_answer(self, model: Model) -> int:
        """The limit that the vendor is told."""
        return ModelOptions.of(model).max_tokens

    def body(self, ask: Ask, *, stream: bool) -> Body:
        """Write a request with one message."""
        options = sampled(ask, ModelOptions.of(ask.model))
        document: dict[str, Any] = {
            "model": ask.model.on_wire,
            "max_tokens": options.max_tokens,
            "messages": [{"role": "user", "content": question(ask, options)}],
        }
        if options.instructions:
            document["system"] = options.instructions
        if options.temperature is not None:
            document["temperature"] = options.temperature
        forced = form(ask.model, options)
        if forced is not None:
            tool = {
                "name": SCHEMA_NAME,
                "description": "Give the answer.",
                "input_schema": forced,
            }
            document["tools"] = [tool]
            document["tool_choice"] = {"type": "tool", "name": SCHEMA_NAME}
        if stream:
            document["stream"] = True
        headers = {"Content-Type": JSON_TYPE, **self._headers}
        return Body(dump(document), headers, options.renderer(RENDERER), "/messages")

    def answer(self, ask: Ask, reply: Reply) -> Parsed:
        """Read a message: its text blocks, or what its tool was given."""
        document = json_answer(reply)
        version, usage = dig(document, "model", kind=str), _usage(document.get("usage"))
        finish = _finish(dig(document, "stop_reason", kind=str))
        if finish == _FILTERED:
            return Parsed((), version, finish, usage)
        blocks = dig(document, "content", kind=list)
        options = ModelOptions.of(ask.model)
        if options.free:
            texts = [dig(b, "text", kind=str) for b in blocks if dig(b, "type", kind=str) == "text"]
            return Parsed(text_output(ask.model, "".join(texts)), version, finish, usage)
        if finish == _LENGTH:
            raise CutAnswerError
        given = [b for b in blocks if dig(b, "type", kind=str) == "tool_use"]
        if len(given) != 1 or given[0].get("name") != SCHEMA_NAME:
            raise AnswerError("schema")
        said = dig(given[0], "input", kind=dict)
        if options.task == "text":
            return Parsed(text_output(ask.model, dump(said).decode()), version, finish, usage)
        return Parsed(object_outputs(ask.model, said), version, finish, usage)

    def refused(self, reply: Reply) -> failures.Failure | bool | None:
        """Refusals come with status 200 here. Type names tell two errors from their status."""
        try:
            error = load_object(reply.content).get("error")
        except AnswerError:
            return None
        kind = error.get("type") if isinstance(error, dict) else None
        return failures.QUOTA_SPENT if kind == "billing_error" else None

    def decoder(self, ask: Ask) -> _Decoder:
        """Return a reader for one stream."""
        return _Decoder(ask.model)


class _Decoder:
    """From `message_start` to `message_stop`; `ping` and unknown events mean nothing."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._version = ""
        self._finish = inference_pb2.FINISH_REASON_UNSPECIFIED
        self._usage: dict[str, Any] = {}
        self._done = False

    def feed(self, event: Event) -> Tensors:
        """See `provider.Decoder`."""
        if self._done:
            raise AnswerError("after_end")
        document = load_object(event.data)
        match document.get("type"):
            case "message_start":
                self._version = dig(document, "message", "model", kind=str)
                self._usage |= document["message"].get("usage") or {}
            case "content_block_delta":
                delta = dig(document, "delta", kind=dict)
                if delta.get("type") == "text_delta":
                    return text_output(self._model, dig(delta, "text", kind=str))
            case "message_delta":
                reason = dig(document, "delta", kind=dict).get("stop_reason")
                if reason is not None:
                    self._finish = _finish(reason)
                self._usage |= document.get("usage") or {}  # cumulative counts
            case "message_stop":
                self._done = True
            case "error":
                raise ErrorInsideError
            case _:
                pass
        return ()

    def finish(self) -> Parsed:
        """See `provider.Decoder`."""
        if not self._done or self._finish == inference_pb2.FINISH_REASON_UNSPECIFIED:
            raise AnswerError("cut")
        return Parsed((), self._version, self._finish, _usage(self._usage))


def _finish(reason: object) -> inference_pb2.FinishReason:
    finish = _FINISH.get(str(reason))
    if finish is None:
        raise AnswerError("finish_reason")
    return finish


def _usage(usage: Any) -> Usage | None:
    """Return the count: tokens read from the cache and written to it are not in `input_tokens`."""
    if not isinstance(usage, dict) or not usage:
        return None
    cached = count(usage, "cache_read_input_tokens")
    written = count(usage, "cache_creation_input_tokens")
    whole = count(usage, "input_tokens") + cached + written
    return Usage(whole, count(usage, "output_tokens"), cached, written)
