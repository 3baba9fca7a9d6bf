"""The Responses API as OpenAI offers it. The base URL ends with `/v1`; nothing is stored there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.remote import failures
from services.remote.bulk_openai import OpenAiBatches
from services.remote.catalog import Model, Options, Provider
from services.remote.prompts import (
    SCHEMA_NAME,
    PromptOptions,
    form,
    question,
    sampled,
    text_output,
)
from services.remote.prompts import check as check_prompt
from services.remote.provider import Ask, Tensors
from services.remote.providers.openai_chat import outputs, special
from services.remote.tracing import GenAi
from services.remote.wire import (
    JSON_TYPE,
    AnswerError,
    Body,
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

RENDERER = "openai-responses/1"
_STOP = inference_pb2.FINISH_REASON_STOP
_FILTERED = inference_pb2.FINISH_REASON_CONTENT_FILTER
_INCOMPLETE = {
    "max_output_tokens": inference_pb2.FINISH_REASON_LENGTH,
    "content_filter": _FILTERED,
}


class ModelOptions(PromptOptions):
    """Of one model."""


class ProviderOptions(Options):
    """None."""


def check(model: Model) -> Iterator[Mistake]:
    """Yield where a model's tensors don't fit its task."""
    yield from check_prompt(model)


class Dialect:
    """See `provider.Dialect`."""

    probe_path = "/models"
    gen_ai = GenAi("chat", "openai")
    in_bulk = OpenAiBatches()

    def __init__(self, provider: Provider) -> None:
        del provider

    def streams(self, model: Model) -> bool:
        """Text streams; a JSON object is of no use in part."""
        return ModelOptions.of(model).free

    def longest_answer(self, model: Model) -> int:
        """The limit that the vendor is told."""
        return ModelOptions.of(model).max_tokens

    def body(self, ask: Ask, *, stream: bool) -> Body:
        """Write a request."""
        options = sampled(ask, ModelOptions.of(ask.model))
        document: dict[str, Any] = {
            "model": ask.model.on_wire,
            "input": question(ask, options),
            "max_output_tokens": options.max_tokens,
            "store": False,
        }
        if options.instructions:
            document["instructions"] = options.instructions
        if options.temperature is not None:
            document["temperature"] = options.temperature
        forced = form(ask.model, options)
        if forced is not None:
            named = {"name": SCHEMA_NAME, "strict": True, "schema": forced}
            document["text"] = {"format": {"type": "json_schema", **named}}
        if stream:
            document["stream"] = True
        headers = {"Content-Type": JSON_TYPE}
        return Body(dump(document), headers, options.renderer(RENDERER), "/responses")

    def answer(self, ask: Ask, reply: Reply) -> Parsed:
        """Read a response: its text parts, one after the other."""
        document = json_answer(reply)
        version, usage, finish = _state(document)
        parts = []
        for item in dig(document, "output", kind=list):
            if dig(item, "type", kind=str) != "message":
                continue  # reasoning, for one
            for part in dig(item, "content", kind=list):
                if dig(part, "type", kind=str) == "refusal":
                    finish = _FILTERED
                elif part["type"] == "output_text":
                    parts.append(dig(part, "text", kind=str))
        if finish == _FILTERED:
            return Parsed((), version, finish, usage)
        if not parts:
            raise AnswerError("structure")
        made = outputs(ask.model, ModelOptions.of(ask.model), "".join(parts), finish)
        return Parsed(made, version, finish, usage)

    def refused(self, reply: Reply) -> failures.Failure | bool | None:
        """As in chat completions."""
        return special(reply)

    def decoder(self, ask: Ask) -> _Decoder:
        """Return a reader for one stream."""
        return _Decoder(ask.model)


class _Decoder:
    """Deltas up to the event that holds the whole response."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._refused = False
        self._end: Parsed | None = None

    def feed(self, event: Event) -> Tensors:
        """See `provider.Decoder`."""
        if self._end is not None:
            raise AnswerError("after_end")
        document = load_object(event.data)
        match document.get("type"):
            case "response.output_text.delta":
                return text_output(self._model, dig(document, "delta", kind=str))
            case "response.refusal.delta":
                self._refused = True
            case "response.completed" | "response.incomplete":
                version, usage, finish = _state(dig(document, "response", kind=dict))
                self._end = Parsed((), version, _FILTERED if self._refused else finish, usage)
            case "error" | "response.failed":
                raise ErrorInsideError
            case _:
                pass
        return ()

    def finish(self) -> Parsed:
        """See `provider.Decoder`."""
        if self._end is None:
            raise AnswerError("cut")
        return self._end


def _state(document: dict[str, Any]) -> tuple[str, Usage | None, inference_pb2.FinishReason]:
    """Return a response's model, usage and end; raises AnswerError, ErrorInsideError."""
    version, usage = dig(document, "model", kind=str), None
    if isinstance(document.get("usage"), dict):
        found = document["usage"]
        cached = count(found, "input_tokens_details", "cached_tokens")
        usage = Usage(count(found, "input_tokens"), count(found, "output_tokens"), cached)
    status = dig(document, "status", kind=str)
    if status == "completed":
        return version, usage, _STOP
    if status == "failed":
        raise ErrorInsideError
    finish = _INCOMPLETE.get((document.get("incomplete_details") or {}).get("reason", ""))
    if status != "incomplete" or finish is None:
        raise AnswerError("finish_reason")
    return version, usage, finish
