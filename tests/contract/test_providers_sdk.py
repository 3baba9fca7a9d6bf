"""The vendors' own SDKs at the stand-in: someone else's code checks that it speaks like them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.standin.app import StandIn
from services.standin.settings import Settings

openai = pytest.importorskip("openai", reason="a development dependency")
anthropic = pytest.importorskip("anthropic", reason="a development dependency")

TOKEN = "sdk-token"
MODEL, VERSION = "standin-chat", "standin-chat-2026-01-01"
ASKED = [{"role": "user", "content": "one two three"}]
SAID = "You said: one two three"
SCHEMA = {
    "type": "object",
    "properties": {"progression": {"type": "number"}},
    "required": ["progression"],
    "additionalProperties": False,
}


@pytest.fixture
async def standin() -> AsyncIterator[StandIn]:
    """The stand-in vendor."""
    async with StandIn(Settings(token=TOKEN)) as running:
        yield running


@pytest.fixture
async def gpt(standin: StandIn) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client, without retries, at the stand-in."""
    url = f"{standin.url}/v1"
    async with openai.AsyncOpenAI(api_key=TOKEN, base_url=url, max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(standin: StandIn) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's client, without retries, at the stand-in."""
    async with anthropic.AsyncAnthropic(
        api_key=TOKEN, base_url=standin.url, max_retries=0
    ) as client:
        yield client


async def faults(standin: StandIn, *rules: object) -> None:
    """Put a fault schedule in force."""
    async with (
        aiohttp.ClientSession() as http,
        http.put(f"{standin.admin_url}/admin/faults", json=list(rules)) as reply,
    ):
        assert reply.status == 204, await reply.text()


async def test_openai_chat(gpt) -> None:
    """Text, finish reason, version and usage as the SDK reads them."""
    reply = await gpt.chat.completions.create(model=MODEL, messages=ASKED)
    assert reply.choices[0].message.content == SAID
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == VERSION
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == 1


async def test_openai_chat_forced_to_a_schema(gpt) -> None:
    """The SDK's own structured output, parsed by its own code."""
    from pydantic import BaseModel, ConfigDict

    class Answer(BaseModel):
        model_config = ConfigDict(extra="forbid")
        progression: float

    asked = [{"role": "user", "content": "- a: 1.5\n- b: 2"}]
    reply = await gpt.chat.completions.parse(model=MODEL, messages=asked, response_format=Answer)
    assert reply.choices[0].message.parsed == Answer(progression=3.5)


async def test_openai_chat_in_a_stream(gpt) -> None:
    """Chunks up to the usage, and the SDK sees the end."""
    stream = await gpt.chat.completions.create(
        model=MODEL, messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    words = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(words) == SAID
    assert chunks[-1].usage.completion_tokens == 5


async def test_openai_responses(gpt) -> None:
    """The text as the SDK puts it together, whole and streamed."""
    reply = await gpt.responses.create(model=MODEL, input="one two three", store=False)
    assert reply.output_text == SAID
    assert reply.status == "completed"
    stream = await gpt.responses.create(model=MODEL, input="one two three", stream=True)
    events = [event async for event in stream]
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == SAID
    assert events[-1].response.output_text == SAID


async def test_openai_embeddings(gpt) -> None:
    """Rows by index."""
    reply = await gpt.embeddings.create(
        model="standin-embed", input=["aab", "c"], encoding_format="float", dimensions=3
    )
    assert sorted((e.index, e.embedding) for e in reply.data) == [(0, [2, 1, 0]), (1, [0, 0, 1])]


async def test_openai_files_and_batches(gpt) -> None:
    """A file of requests, a batch, and its answers by their own ids; one bad line fails alone."""
    body = {"model": MODEL, "messages": ASKED}
    url = "/v1/chat/completions"
    lines = [
        {"custom_id": "good", "method": "POST", "url": url, "body": body},
        {"custom_id": "bad", "method": "POST", "url": url, "body": body | {"model": "ghost"}},
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = await gpt.files.create(file=("batch.jsonl", content), purpose="batch")
    batch = await gpt.batches.create(
        input_file_id=file.id, endpoint=url, completion_window="24h", metadata={"job": "j-1"}
    )
    assert batch.status == "validating"
    while batch.status not in ("completed", "failed"):
        batch = await gpt.batches.retrieve(batch.id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    (good,) = (await gpt.files.content(batch.output_file_id)).text.splitlines()
    (bad,) = (await gpt.files.content(batch.error_file_id)).text.splitlines()
    said = json.loads(good)["response"]["body"]
    assert openai.types.chat.ChatCompletion(**said).choices[0].message.content == SAID
    assert (json.loads(bad)["custom_id"], json.loads(bad)["response"]["status_code"]) == (
        "bad",
        404,
    )
    assert [one.metadata async for one in gpt.batches.list(limit=1)] == [{"job": "j-1"}]
    assert (await gpt.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await gpt.files.content(file.id)
    with pytest.raises(openai.NotFoundError):
        await gpt.batches.create(input_file_id="file-none", endpoint=url, completion_window="24h")


async def test_openai_errors(gpt, standin) -> None:
    """Each status is the SDK's own exception, with the code that the vendor has."""
    with pytest.raises(openai.NotFoundError) as caught:
        await gpt.chat.completions.create(model="ghost", messages=ASKED)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await gpt.chat.completions.create(model=MODEL, messages=ASKED, temperature=9)
    await faults(standin, {"fault": "rate_limit;retry_after=1;code=insufficient_quota"})
    with pytest.raises(openai.RateLimitError) as limited:
        await gpt.chat.completions.create(model=MODEL, messages=ASKED)
    assert limited.value.code == "insufficient_quota"
    await faults(standin)
    with pytest.raises(openai.AuthenticationError):
        await gpt.with_options(api_key="wrong").chat.completions.create(model=MODEL, messages=ASKED)


async def test_anthropic_messages(claude) -> None:
    """Text, stop reason, version and usage as the SDK reads them."""
    reply = await claude.messages.create(model=MODEL, max_tokens=64, messages=ASKED)
    assert reply.content[0].text == SAID
    assert (reply.stop_reason, reply.model) == ("end_turn", VERSION)
    assert (reply.usage.input_tokens, reply.usage.cache_read_input_tokens) == (2, 1)


async def test_anthropic_tools(claude) -> None:
    """A tool that must be used is given what its schema wants."""
    reply = await claude.messages.create(
        model=MODEL, max_tokens=64, messages=[{"role": "user", "content": "- a: 1.5\n- b: 2"}],
        tools=[{"name": "answer", "input_schema": SCHEMA}],
        tool_choice={"type": "tool", "name": "answer"},
    )  # fmt: skip
    assert reply.stop_reason == "tool_use"
    assert reply.content[0].input == {"progression": 3.5}


async def test_anthropic_stream(claude) -> None:
    """The SDK puts the message together from the events."""
    async with claude.messages.stream(model=MODEL, max_tokens=64, messages=ASKED) as stream:
        assert "".join([text async for text in stream.text_stream]) == SAID
        message = await stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 5


async def test_anthropic_refusals_and_limits(claude, standin) -> None:
    """Both ends that the remote path must tell apart."""
    await faults(standin, {"fault": "refusal", "count": 1}, {"fault": "length"})
    refused = await claude.messages.create(model=MODEL, max_tokens=64, messages=ASKED)
    assert refused.stop_reason == "refusal"
    cut = await claude.messages.create(model=MODEL, max_tokens=64, messages=ASKED)
    assert cut.stop_reason == "max_tokens"


async def test_anthropic_message_batches(claude) -> None:
    """Requests in one call, results by their own ids; a bad one fails alone; one can be canceled."""
    params = {"model": MODEL, "max_tokens": 64, "messages": ASKED}
    requests = [
        {"custom_id": "good", "params": params},
        {"custom_id": "bad", "params": params | {"model": "ghost"}},
    ]
    batch = await claude.messages.batches.create(requests=requests)
    assert (batch.processing_status, batch.request_counts.processing) == ("in_progress", 2)
    while batch.processing_status != "ended":
        batch = await claude.messages.batches.retrieve(batch.id)
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1)
    results = await claude.messages.batches.results(batch.id)
    found = {one.custom_id: one.result async for one in results}
    assert found["good"].message.content[0].text == SAID
    assert found["bad"].error.error.type == "not_found_error"
    again = await claude.messages.batches.create(requests=requests)
    again = await claude.messages.batches.cancel(again.id)
    assert again.processing_status == "canceling"
    again = await claude.messages.batches.retrieve(again.id)
    assert (again.processing_status, again.request_counts.canceled) == ("ended", 2)
    assert [one.id async for one in claude.messages.batches.list(limit=1)] == [again.id, batch.id]
    assert (await claude.messages.batches.delete(again.id)).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.batches.results(again.id)
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.batches.create(requests=[*requests, requests[0]])
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.batches.retrieve("msgbatch_none")


async def test_anthropic_errors(claude, standin) -> None:
    """Each status is the SDK's own exception; so is an error in the middle of a stream."""
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.create(model="ghost", max_tokens=1, messages=ASKED)
    await faults(standin, {"fault": "error;status=529", "count": 1}, {"fault": "error_inside"})
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        await claude.messages.create(model=MODEL, max_tokens=1, messages=ASKED)
    assert overloaded.value.status_code == 529
    stream = await claude.messages.create(model=MODEL, max_tokens=64, messages=ASKED, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="told to fail"):
        [event async for event in stream]
