"""Filters on streams: a window is held back, and the chunks, joined, are the whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from services.chassis.errors import ServiceError
from tests.unit.router.filtered import NOTES, Filtered, about, said, text_output
from twinpath.audit.v1 import record_pb2
from twinpath.inference.v1 import inference_pb2

END = inference_pb2.InferResult()
MASK = {"pii": "mask", "secret": "mask", "markup": "mask"}
RULES: dict[str, Any] = {"redact": ["pii"], "output": MASK}
KEY_ID = "AKIAIOSFODNN7EXAMPLE"


async def read(
    world: Filtered, note: str, chunks: list[str] | None = None
) -> tuple[list[str], Any]:
    """Read a whole stream about a note: the chunks' texts, and the final message."""
    await world.board.refresh()
    chunks = [] if chunks is None else chunks
    final = None
    async for message in world.streams.decide(about(note), world.call()):
        if message.HasField("chunk"):
            chunks.append(said(message.chunk.outputs))
        else:
            final = message.final
    return chunks, final


def cut(text: str, size: int) -> list[str]:
    """A text in pieces of a size."""
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_values_come_back_across_chunks(size: int) -> None:
    """A token that is cut by chunk boundaries is put back as one."""
    world = Filtered(filters={"redact": ["pii"]})
    world.local.script = [*cut("Write to [EMAIL_1], and [EMAIL_1] again. [END]", size), END]
    chunks, final = await read(world, "From jo@example.org.")
    assert said(final.outputs) == "Write to jo@example.org, and jo@example.org again. [END]"
    assert "".join(chunks) == said(final.outputs)
    assert list(final.filters_applied) == ["redacted:email=1"]


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_values_come_back_into_json_as_json_writes_them(size: int) -> None:
    """In a stream as in a whole answer: what is given stays JSON by the task's schema."""
    schema = {"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"]}
    outputs = [{"name": "text_output", "datatype": "BYTES", "shape": [-1], "json_schema": schema}]
    filters = {"patterns": {"nick": '"[a-z]{1,9}"'}, "redact": ["nick"]}
    world = Filtered(outputs=outputs, filters=filters)
    world.local.script = [*cut('{"who": "[NICK_1]"}', size), END]
    chunks, final = await read(world, 'They call him "ace".')
    assert json.loads(said(final.outputs)) == {"who": '"ace"'}
    assert "".join(chunks) == said(final.outputs)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_what_is_masked_in_the_whole_is_masked_in_chunks(size: int) -> None:
    """No chunk holds a part of what the policy masks, however the model cuts it."""
    world = Filtered(filters=RULES)
    secret = "-----BEGIN PRIVATE KEY-----\n" + "Zm9v\n" * 50 + "-----END PRIVATE KEY-----"
    text = (
        f"To [EMAIL_1], not al@example.net. Card 4111 1111 1111 1111, key {KEY_ID}. "
        f"{secret} <img src=x onerror=y()> " + "More words. " * 30
    )  # fmt: skip
    world.local.script = [*cut(text, size), END]
    chunks, final = await read(world, "From jo@example.org.")
    whole = "".join(chunks)
    assert whole == said(final.outputs)
    assert whole.startswith("To jo@example.org, not [EMAIL]. Card [CARD], key [SECRET]. [SECRET] <")
    assert "masked:secret=2" in final.filters_applied
    if size < 1000:
        assert len(chunks) > 10


async def test_a_stream_that_is_refused_midway_is_cut_before_it() -> None:
    """What came before the refused text was given; it itself was not, and there is no success."""
    world = Filtered(filters={"output": {"secret": "refuse"}})
    world.local.script = [*cut("Plain words. " * 20 + f"key {KEY_ID} " + "x " * 99, 5), END]
    chunks: list[str] = []
    with pytest.raises(ServiceError) as caught:
        await read(world, "A note.", chunks)
    assert caught.value.reason == "OUTPUT_POLICY"
    assert KEY_ID[:8] not in "".join(chunks)
    assert "".join(chunks).startswith("Plain words.")
    failed = world.audit.log[-1].record
    assert failed.kind == record_pb2.RECORD_KIND_FAILED
    assert list(failed.filters_applied) == ["refused:secret=1"]


async def test_before_anything_was_given_another_candidate_takes_over() -> None:
    """A first answer that is refused while all of it is held back costs the caller nothing."""
    world = Filtered(filters={"output": {"secret": "refuse"}})
    world.local.script = [f"key {KEY_ID}", " and more", END]
    world.remote.script = ["Nothing ", "to tell.", END]
    chunks, final = await read(world, "A note.")
    assert "".join(chunks) == said(final.outputs) == "Nothing to tell."
    assert final.fallback
    assert [a.reason for a in final.attempts] == ["OUTPUT_POLICY", ""]


async def test_without_filters_chunks_pass_as_they_come() -> None:
    """Each chunk is given as the model made it."""
    world = Filtered(filters={})
    world.local.script = ["al@exa", "mple.net", END]
    chunks, _ = await read(world, "A note.")
    assert chunks == ["al@exa", "mple.net"]


async def test_a_character_that_is_cut_in_two_is_one() -> None:
    """Chunks may cut a character's bytes; the filter puts them together."""
    world = Filtered(filters=RULES)
    raw = "grüße €".encode()
    chunks = [
        inference_pb2.InferChunk(outputs=[text_output(raw[i : i + 1])]) for i in range(len(raw))
    ]

    async def stream(item: Any) -> Any:
        world.local.items.append(item)
        for chunk in chunks:
            yield inference_pb2.InferStreamResponse(chunk=chunk)
        yield inference_pb2.InferStreamResponse(final=END)

    world.local.infer_stream = stream  # type: ignore[method-assign]
    given, final = await read(world, "A note.")
    assert "".join(given) == said(final.outputs) == "grüße €"


PARTS = [
    "4111 1111 1111 1111", "4111 1111", " 1111 1111", "al@example.net", "@example.net", "al",
    "DE89 3704 0044 0532 0130 00", "+49 (0)30 901820", "536-22-1234", KEY_ID, "password = ",
    "hunter2hunter2", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "<script>", "<",
    " onerror=", "onload =", "javascript:", "java", "script:", "(", "[EMAIL_1]", "[EMAIL", "_1]", "&",
    "&#106;avascript:x", " ", "\n", "5", "ß", "日本", ".", "word ", "[", "]", "<b>", "x",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlMTIz",
]  # fmt: skip


class Chunks:
    """One world for many examples: to make one takes longer than an example."""

    world: Filtered | None = None

    @classmethod
    def get(cls) -> Filtered:
        """The world, empty."""
        if cls.world is None:
            cls.world = Filtered(filters=RULES)
        cls.world.audit.log.clear()
        return cls.world


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PARTS), max_size=60),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
@example([*["4111 1111 1111 1111"] * 3, "[EMAIL_1]", "4111 1111 1111 1111", "javascript:"], [1])
async def test_any_text_in_any_chunks_is_what_the_filter_makes_of_the_whole(
    parts: list[str], sizes: list[int]
) -> None:
    """However a text is cut, chunks joined equal the filter of the whole, to the last character.

    Or it is refused: of long runs of digits a cut may show other finds than the whole does, and what
    is not certain is not given. Such texts are so rare that examples don't run out.
    """
    world = Chunks.get()
    text = "".join(parts) or "x"
    pieces, at = [], 0
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    world.local.script = [*pieces, END]
    chunks, final, refusal = [], None, ""
    try:
        chunks, final = await read(world, "From jo@example.org.")
    except ServiceError as error:
        refusal = f"{error.reason} {error.message}"
    assert not refusal or "OUTPUT_POLICY" in refusal
    assume(final is not None)
    world.says = text
    whole = await world.note("From jo@example.org.")
    world.says = None
    assert "".join(chunks) == said(final.outputs) == said(whole.outputs)


def test_the_streaming_task_of_these_tests_streams() -> None:
    """What is tested here is a stream."""
    assert Filtered().catalog.tasks[NOTES].streaming
