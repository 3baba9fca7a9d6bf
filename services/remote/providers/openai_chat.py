"""Chat completions as OpenAI offers them, and vLLM, LiteLLM, Ollama, Azure and many others.

The base URL ends with `/v1` (Azure: with the deployment, plus `query: {api-version: …}` and
`auth: {header: api-key, scheme: ""}`). A task with a schema is forced to it by
`response_format`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from services.remote import failures
from services.remote.bulk_openai import OpenAiBatches
from services.remote.catalog import Model, Options, Provider
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

RENDERER = "openai-chat/1"
FINISH = {
    "stop": inference_pb2.FINISH_REASON_STOP,
    "length": inference_pb2.FINISH_REASON_LENGTH,
    "content_filter": inference_pb2.FINISH_REASON_CONTENT_FILTER,
}
_FILTERED = inference_pb2.FINISH_REASON_CONTENT_FILTER


class ModelOptions(PromptOptions):
    """Of one model.

    Attributes:
        limit_field: What the vendor calls the limit on the answer's tokens.
    """

    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_completion_tokens"


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
        """Write a request for one choice."""
        options = sampled(ask, ModelOptions.of(ask.model))
        messages = [{"role": "user", "content": question(ask, options)}]
        if options.instructions:
            messages.insert(0, {"role": "system", "content": options.instructions})
        document: dict[str, Any] = {
            "model": ask.model.on_wire,
            "messages": messages,
            options.limit_field: options.max_tokens,
        }
        if options.temperature is not None:
            document["temperature"] = options.temperature
        forced = form(ask.model, options)
        if forced is not None:
            named = {"name": SCHEMA_NAME, "strict": True, "schema": forced}
            document["response_format"] = {"type": "json_schema", "json_schema": named}
        if stream:
            document["stream"] = True
            document["stream_options"] = {"include_usage": True}
        headers = {"Content-Type": JSON_TYPE}
        path = "/chat/completions"
        return Body(dump(document), headers, options.renderer(RENDERER), path)

    def answer(self, ask: Ask, reply: Reply) -> Parsed:
        """Read a completion with one choice."""
        document = json_answer(reply)
        version, usage = dig(document, "model", kind=str), usage_of(document)
        choice = dig(document, "choices", 0, kind=dict)
        finish = FINISH.get(dig(choice, "finish_reason", kind=str))
        if finish is None:
            raise AnswerError("finish_reason")
        message = dig(choice, "message", kind=dict)
        if message.get("refusal") or finish == _FILTERED:
            return Parsed((), version, _FILTERED, usage)
        text = dig(message, "content", kind=str)
        options = ModelOptions.of(ask.model)
        return Parsed(outputs(ask.model, options, text, finish), version, finish, usage)

    def refused(self, reply: Reply) -> failures.Failure | bool | None:
        """Azure's filter answers 400; a spent account answers 429, as a rate limit does."""
        return special(reply)

    def decoder(self, ask: Ask) -> _Decoder:
        """Return a reader for one stream."""
        return _Decoder(ask.model)


class _Decoder:
    """Chunks up to `[DONE]`; the usage comes in a last chunk of its own."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._version = ""
        self._finish = inference_pb2.FINISH_REASON_UNSPECIFIED
        self._usage: Usage | None = None
        self._done = False

    def feed(self, event: Event) -> Tensors:
        """See `provider.Decoder`."""
        if self._done:
            raise AnswerError("after_end")
        if event.data == "[DONE]":
            self._done = True
            return ()
        document = load_object(event.data)
        if document.get("error") is not None:
            raise ErrorInsideError
        self._version = document.get("model") or self._version
        self._usage = usage_of(document) or self._usage
        choices = dig(document, "choices", kind=list)
        if not choices:  # the usage, or Azure's filter results on the prompt
            return ()
        reason = choices[0].get("finish_reason") if isinstance(choices[0], dict) else None
        if reason is not None:
            finish = FINISH.get(reason)
            if finish is None:
                raise AnswerError("finish_reason")
            self._finish = finish
        delta = dig(choices[0], "delta", kind=dict)
        if delta.get("refusal"):
            self._finish = _FILTERED
        text = delta.get("content")
        if text is not None and not isinstance(text, str):
            raise AnswerError("structure")
        return text_output(self._model, text) if text else ()

    def finish(self) -> Parsed:
        """See `provider.Decoder`."""
        if not self._done or self._finish == inference_pb2.FINISH_REASON_UNSPECIFIED:
            raise AnswerError("cut")
        return Parsed((), self._version, self._finish, self._usage)


def outputs(
    model: Model, options: PromptOptions, text: str, finish: inference_pb2.FinishReason
) -> Tensors:
    """Return an answer's text as tensors, by the model's task.

    Raises:
        CutAnswerError: The length limit cut a JSON object.
        AnswerError: It breaks the schema.
    """
    if finish == inference_pb2.FINISH_REASON_LENGTH and not options.free:
        raise CutAnswerError
    if options.task == "text":
        return text_output(model, text)
    return object_outputs(model, load_object(text))


def usage_of(document: dict[str, Any]) -> Usage | None:
    """Return the usage report of a completion; None if there is none."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None
    cached = count(usage, "prompt_tokens_details", "cached_tokens")
    return Usage(count(usage, "prompt_tokens"), count(usage, "completion_tokens"), cached)


def special(reply: Reply) -> failures.Failure | bool | None:
    """Return what OpenAI's error codes say beyond the status; never their message."""
    try:
        error = load_object(reply.content).get("error")
    except AnswerError:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    if code in ("content_filter", "content_policy_violation"):
        return True
    if code == "context_length_exceeded":
        return failures.HTTP[413]
    if code in ("insufficient_quota", "billing_hard_limit_reached"):
        return failures.QUOTA_SPENT
    return None
