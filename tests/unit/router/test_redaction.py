"""Redaction: models get tokens, callers get their own values back, and nobody else gets them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from services.router.filters import FilterSpec
from services.router.redaction import PutBack, Redactor, holds_more, put_back
from tests.unit.router.filtered import Filtered, about, said, seen
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE
RULES: dict[str, Any] = {
    "patterns": {"case_number": "CASE-[0-9]{6}"},
    "redact": ["pii", "secret", "case_number"],
}
NOTE = "Write to jo@example.org (CASE-123456), or again to jo@example.org; call +49 30 901820."


async def test_models_get_tokens_and_the_caller_gets_the_values_back() -> None:
    """Each value has one token; the answer that repeats it holds the value again."""
    world = Filtered(filters=RULES)
    reply = await world.note(NOTE)
    assert seen(world.items[0]) == (
        "Write to [EMAIL_1] ([CASE_NUMBER_1]), or again to [EMAIL_1]; call [PHONE_1]."
    )
    assert said(reply.outputs) == NOTE


async def test_reply_and_records_say_kinds_and_counts_and_no_value() -> None:
    """What was redacted stands in the reply, the INTENT and the OUTCOME; no value is in a record."""
    world = Filtered(filters=RULES)
    reply = await world.note(NOTE)
    done = ["redacted:case_number=1", "redacted:email=2", "redacted:phone=1"]
    assert list(reply.filters_applied) == done
    assert world.audit.kinds() == ["INTENT", "OUTCOME"]
    for entry in world.audit.log:
        assert list(entry.record.filters_applied) == done
        assert b"jo@example" not in entry.record.SerializeToString()
        assert b"jo@example" not in entry.payload.model_input


async def test_both_paths_get_the_same_digest() -> None:
    """Redaction comes before any path is known."""
    world = Filtered(filters=RULES)
    digests = {(await world.note(NOTE, only_path=path)).input_digest for path in (LOCAL, REMOTE)}
    assert len(digests) == 1
    assert seen(world.local.items[0]) == seen(world.remote.items[0])


async def test_explain_says_what_would_be_redacted() -> None:
    """And gives the digest of the redacted input."""
    world = Filtered(filters=RULES)
    await world.board.refresh()
    told = await world.pipeline.explain(about(NOTE), world.call())
    assert "redacted:email=2" in told.filters_applied
    assert told.input_digest == (await world.note(NOTE)).input_digest


async def test_a_kept_answer_gives_each_caller_their_own_values() -> None:
    """Two notes that differ in an address alone share an answer, and neither gets the other's."""
    world = Filtered(filters=RULES, streaming=False, cache={"ttl_s": 60})
    first = await world.note("From jo@example.org.")
    second = await world.note("From al@example.net.")
    assert (first.cached, second.cached) == (False, True)
    assert said(first.outputs) == "From jo@example.org."
    assert said(second.outputs) == "From al@example.net."
    assert len(world.items) == 1


async def test_equal_questions_at_once_give_each_caller_their_own_values() -> None:
    """A question that waits for an equal one's answer gets its own values in it."""
    world = Filtered(filters=RULES, streaming=False, cache={"ttl_s": 60})
    await world.board.refresh()
    names = ("jo", "al", "bo")
    replies = await asyncio.gather(*(world.note(f"From {n}@example.org.") for n in names))
    assert [said(r.outputs) for r in replies] == [f"From {n}@example.org." for n in names]


async def test_a_token_that_the_text_brings_along_stays_what_it_is() -> None:
    """A text that holds `[EMAIL_1]` itself gets it back; the address gets another token."""
    world = Filtered(filters=RULES)
    text = "[EMAIL_1] is a token, jo@example.org an address."
    reply = await world.note(text)
    assert seen(world.items[0]) == "[EMAIL_1] is a token, [EMAIL_2] an address."
    assert said(reply.outputs) == text


async def test_a_tasks_own_constants_are_left_alone() -> None:
    """What the task's author wrote as a constant reaches the model as it is."""
    world = Filtered(filters={"patterns": {"word": "temperature"}, "redact": ["word"]})
    await world.note("The temperature is high.")
    assert seen(world.items[0]) == "The [WORD_1] is high."
    assert "temperature" in seen(world.items[0], "sampling_parameters")


async def test_without_rules_texts_reach_models_as_they_are() -> None:
    """The control: the same note without rules holds every value."""
    world = Filtered(filters={})
    reply = await world.note(NOTE)
    assert seen(world.items[0]) == NOTE
    assert list(reply.filters_applied) == []


async def test_a_repeated_request_gets_the_recorded_answer_with_its_values() -> None:
    """The answer of the first time is given again, values and all."""
    world = Filtered(filters=RULES)
    first = await world.note(NOTE, idempotency_key="k")
    again = await world.note(NOTE, idempotency_key="k")
    assert again.repeated
    assert said(again.outputs) == said(first.outputs) == NOTE


async def replay(world: Filtered, decision: str, **more: Any) -> router_pb2.ReplayResponse:
    """Replay as an auditor."""
    request = router_pb2.ReplayRequest(decision_id=decision, **more)
    return await world.replays.replay(request, world.call(subject="auditor"))


async def test_a_replay_compares_what_the_model_said_and_sees_no_value() -> None:
    """The model gets the redacted input again, and its answer agrees with what it said then."""
    world = Filtered(filters=RULES, streaming=False)
    reply = await world.note(NOTE)
    found = await replay(world, reply.decision_id)
    assert found.agrees
    assert "jo@example" not in seen(world.items[-1])


async def test_a_replay_of_what_is_redacted_now_asks_nobody() -> None:
    """A recorded input with values that today's rules redact goes to no model."""
    world = Filtered(filters={}, streaming=False)
    reply = await world.note(NOTE)
    strict = Filtered(filters=RULES, streaming=False)
    world.catalog.tasks.update(strict.catalog.tasks)
    with pytest.raises(FailedPreconditionError) as caught:
        await replay(world, reply.decision_id)
    assert caught.value.reason == "INPUT_NOT_REDACTED"
    assert len(world.items) == 1


async def test_every_attempt_gets_the_redacted_text() -> None:
    """Retries and fallbacks get what the first attempt got."""
    world = Filtered(filters=RULES)

    def fails(_: Any) -> Any:
        raise UnavailableError("AWAY", "away")

    world.local.behave = world.remote.behave = fails
    with pytest.raises(UnavailableError):
        await world.note(NOTE)
    assert len(world.items) >= 2
    assert len({seen(item) for item in world.items}) == 1
    assert "[EMAIL_1]" in seen(world.items[0])


async def test_what_hides_behind_each_other_without_end_is_refused() -> None:
    """Each of a few is found once the one before is cut out; of a thousand the text is refused."""
    world = Filtered(filters=RULES)
    reply = await world.note("+49301234567" * 3)
    assert seen(world.items[0]) == "[PHONE_1]" * 3
    assert said(reply.outputs) == "+49301234567" * 3
    with pytest.raises(InvalidArgumentError) as caught:
        await world.note("+49301234567" * 1000)
    assert caught.value.reason == "NOT_REDACTABLE"
    assert len(world.items) == 1


def finders(**keys: Any) -> Any:
    """The finders of some rules."""
    return FilterSpec.model_validate(keys or RULES).redacting


VALUES = [
    "jo@example.org", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "+49 30 901820",
    "536-22-1234", "AKIAIOSFODNN7EXAMPLE", "password: hunter2hunter2", "CASE-123456", "[EMAIL_1]",
    "-----BEGIN PRIVATE KEY-----\nabc", "[", "]", " ", "x", "1", "-", "_", ".", "@", "EMAIL_1",
]  # fmt: skip


@settings(deadline=None)  # other processes share the machine
@given(st.lists(st.one_of(st.sampled_from(VALUES), st.text(max_size=5)), max_size=12))
def test_nothing_is_left_over_and_everything_comes_back(parts: list[str]) -> None:
    """Of any mixture of values and text, the rules find nothing more, and the way back is exact."""
    text = "".join(parts)
    redactor = Redactor(finders())
    (clean,) = redactor.redact([text])
    assert not holds_more(clean, finders())
    assert put_back(clean, redactor.values) == text


@settings(deadline=None)  # other processes share the machine
@given(st.lists(st.sampled_from(VALUES), max_size=12), st.lists(st.integers(1, 9), min_size=1))
def test_pieces_put_back_are_the_whole_put_back(parts: list[str], sizes: list[int]) -> None:
    """However a model's text is cut into chunks, the values come back as in the whole."""
    redactor = Redactor(finders())
    (clean,) = redactor.redact(["".join(parts)])
    back = PutBack(redactor.values)
    out, at, turn = "", 0, 0
    while at < len(clean):
        size = sizes[turn % len(sizes)]
        out += back.feed(clean[at : at + size])
        at, turn = at + size, turn + 1
    assert out + back.finish() == put_back(clean, redactor.values)
