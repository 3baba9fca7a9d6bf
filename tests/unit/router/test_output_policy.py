"""The output policy: what a model's text must not hold is masked or refused, on every road."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import ServiceError, UnavailableError
from services.chassis.files import FileError
from services.router import markup
from services.router.catalog import CatalogKeeper
from services.router.filters import FilterSpec, masked
from tests.unit.router.filtered import NOTES, Filtered, catalog_with, said
from twinpath.audit.v1 import record_pb2
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE
MASK = {"output": {"pii": "mask", "secret": "mask", "markup": "mask"}}
REFUSE = {"output": {"pii": "mask", "secret": "refuse"}}
KEY_ID = "AKIAIOSFODNN7EXAMPLE"
REPORT = {
    "type": "object",
    "properties": {"grade": {"type": "integer"}, "who": {"type": "string"}},
    "required": ["grade", "who"],
    "additionalProperties": False,
}


async def test_what_is_masked_leaves_no_value_and_is_counted() -> None:
    """The caller gets the kind in its place; reply and record count it."""
    world = Filtered(filters=MASK)
    world.says = f"Ask al@example.net or bo@example.net; <b>{KEY_ID}</b> <script>x()</script>"
    reply = await world.note("A note.")
    assert said(reply.outputs) == ("Ask [EMAIL] or [EMAIL]; <b>[SECRET]</b> [MARKUP]>x()[MARKUP]>")
    done = ["masked:email=2", "masked:markup=2", "masked:secret=1"]
    assert list(reply.filters_applied) == done
    assert list(world.audit.log[-1].record.filters_applied) == done
    assert list(world.audit.log[0].record.filters_applied) == []
    assert all(b"example.net" not in entry.SerializeToString() for entry in world.audit.log)


async def test_what_is_refused_is_a_failed_attempt_and_another_answers() -> None:
    """The first candidate's answer counts as none; the record says which kind was refused."""
    world = Filtered(filters=REFUSE)

    def local_tells(item: Any) -> Any:
        world.says = f"The key is {KEY_ID}."
        try:
            return world.echo(item)
        finally:
            world.says = "Nothing to tell."

    world.local.behave = local_tells
    reply = await world.note("A note.")
    assert said(reply.outputs) == "Nothing to tell."
    assert reply.answered_by.path == REMOTE
    assert [a.reason for a in reply.attempts] == ["OUTPUT_POLICY", ""]
    assert list(reply.filters_applied) == ["refused:secret=1"]


async def test_when_every_answer_is_refused_nobody_answers() -> None:
    """A clear error without the value; no retry; the FAILED record counts what was refused."""
    world = Filtered(filters=REFUSE)
    world.says = f"The key is {KEY_ID}."
    with pytest.raises(UnavailableError) as caught:
        await world.note("A note.")
    assert KEY_ID not in str(caught.value) + str(caught.value.metadata)
    assert set(caught.value.metadata.values()) == {"OUTPUT_POLICY"}
    assert len(world.items) == 2
    failed = world.audit.log[-1].record
    assert failed.kind == record_pb2.RECORD_KIND_FAILED
    assert list(failed.filters_applied) == ["refused:secret=1"] * 2


async def test_the_policy_as_it_is_now_holds_for_kept_answers() -> None:
    """An answer that was kept before the rule is not given after it; the model is asked again."""
    world = Filtered(filters={}, streaming=False, cache={"ttl_s": 60})
    world.says = f"The key is {KEY_ID}."
    await world.note("A note.", only_path=LOCAL)
    assert (await world.note("A note.", only_path=LOCAL)).cached
    strict = Filtered(filters=REFUSE, streaming=False, cache={"ttl_s": 60})
    world.catalog.tasks.update(strict.catalog.tasks)
    world.says = "Nothing to tell."
    reply = await world.note("A note.", only_path=LOCAL)
    assert not reply.cached
    assert said(reply.outputs) == "Nothing to tell."


async def test_the_policy_holds_for_a_replay() -> None:
    """What a model says in a replay is judged as what it says to a caller."""
    world = Filtered(filters=REFUSE, streaming=False)
    reply = await world.note("A note.", only_path=LOCAL)
    world.says = f"The key is {KEY_ID}."
    request = router_pb2.ReplayRequest(decision_id=reply.decision_id)
    with pytest.raises(ServiceError):
        await world.replays.replay(request, world.call(subject="auditor"))
    assert list(world.audit.log[-1].record.filters_applied) == ["refused:secret=1"]


async def test_the_callers_own_values_are_no_leak() -> None:
    """What was redacted and comes back is the caller's own; what the model adds is masked."""
    world = Filtered(filters={"redact": ["pii"], **MASK})
    world.says = lambda asked: f"{asked} And al@example.net."
    reply = await world.note("From jo@example.org.")
    assert said(reply.outputs) == "From jo@example.org. And [EMAIL]."
    assert list(reply.filters_applied) == ["redacted:email=1", "masked:email=1"]


async def test_a_value_that_would_make_markup_is_not_put_back() -> None:
    """Where markup is looked for, a clean text stays clean: the token stays in its place."""
    rules = {"patterns": {"tag": "scr[a-z]{3}"}, "redact": ["tag"], "output": {"markup": "mask"}}
    world = Filtered(filters=rules)
    world.says = "<[TAG_1] src=x>"
    reply = await world.note("A script.")
    assert said(reply.outputs) == "<[TAG_1] src=x>"


async def test_bytes_that_are_no_text_survive() -> None:
    """An output that is no UTF-8 is searched, and otherwise left as it is, byte for byte."""
    world = Filtered(filters=MASK)
    world.says = b"\xff\xfe al@example.net \x80"
    reply = await world.note("A note.")
    assert said(reply.outputs).encode("utf-8", "surrogateescape") == b"\xff\xfe [EMAIL] \x80"


async def test_without_a_policy_an_output_is_left_alone() -> None:
    """The control: the same text passes as it is."""
    world = Filtered(filters={})
    world.says = f"<script>{KEY_ID}</script> al@example.net"
    assert said((await world.note("A note.")).outputs) == world.says


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"one_of": ["benign", "malignant"]}, "benign", "Benign?"),
        ({"max_len": 4}, "four", "fives"),
        ({"json_schema": REPORT}, '{"grade": 2, "who": "x"}', '{"grade": "two", "who": "x"}'),
        ({"json_schema": REPORT}, ' {"who": "", "grade": 0}\n', '{"grade": 2, "who": "x"'),
        ({"json_schema": REPORT}, '{"grade": 2, "who": "y"}', '{"grade": NaN, "who": "x"}'),
        ({"json_schema": REPORT}, '{"grade": 2, "who": "z"}', "[" * 100_000),
    ],
)
async def test_a_text_that_breaks_its_contract_is_no_answer(
    rule: dict[str, Any], good: str, bad: str
) -> None:
    """A label that is none, a text too long, JSON that is none: a failed attempt, without it."""
    outputs = [{"name": "text_output", "datatype": "BYTES", "shape": [-1], **rule}]
    world = Filtered(outputs=outputs)
    world.says = good
    assert said((await world.note("A note.")).outputs) == good
    world.says = bad
    with pytest.raises(UnavailableError) as caught:
        await world.note("Another note.")
    assert set(caught.value.metadata.values()) == {"OUTPUT_CONTRACT"}
    assert bad not in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "rule"), [("BYTES", {"min": 0.0}), ("FP32", {"one_of": ["a"]}), ("INT64", {"max_len": 1}),
                          ("INT64", {"json_schema": {}})]
)  # fmt: skip
def test_a_rule_for_another_type_is_refused_at_load(
    tmp_path: Path, datatype: str, rule: dict[str, Any]
) -> None:
    """A range for a text or a label for a number would never be looked at."""
    outputs = [{"name": "text_output", "datatype": datatype, "shape": [-1], **rule}]
    with pytest.raises(FileError, match="are not for"):
        CatalogKeeper(catalog_with(tmp_path, outputs=outputs), 1.0)


@pytest.mark.parametrize("schema", [{"type": "text"}, {"$ref": "https://example.net/schema"}])
def test_a_schema_that_is_none_or_lies_elsewhere_is_refused_at_load(
    tmp_path: Path, schema: dict[str, Any]
) -> None:
    """A mistake in the catalog, not a failure of each answer; nothing is fetched."""
    outputs = [{"name": "text_output", "datatype": "BYTES", "shape": [-1], "json_schema": schema}]
    with pytest.raises(FileError, match="is no JSON schema"):
        CatalogKeeper(catalog_with(tmp_path, outputs=outputs), 1.0)


async def test_values_are_put_back_into_json_as_json_writes_them() -> None:
    """A quotation mark in a redacted value does not end the string that it stands in."""
    outputs = [{"name": "text_output", "datatype": "BYTES", "shape": [-1], "json_schema": REPORT}]
    filters = {"patterns": {"nick": '"[a-z]{1,9}"'}, "redact": ["nick"]}
    world = Filtered(outputs=outputs, filters=filters)
    world.says = '{"grade": 2, "who": "[NICK_1]"}'
    whole = said((await world.note('They call him "ace".')).outputs)
    assert json.loads(whole) == {"grade": 2, "who": '"ace"'}


UNSAFE = [
    "<script>alert(1)</script>",
    "<SCRIPT src=//evil.example/x.js>",
    "<scr<script>ipt>",
    "<img src=x onerror=alert(1)>",
    "<img/onerror = alert(1)>",
    '<a title=">" onclick="x()">',
    "<iframe src=x></iframe>",
    "<svg/onload=x()>",
    "<meta http-equiv=refresh content=0>",
    '<a href="javascript:alert(1)">x</a>',
    '<a href=" JavaScript: alert(1)">x</a>',
    '<a href="java\nscript:alert(1)">x</a>',
    '<a href="&#106;avascript:alert(1)">x</a>',
    '<a href="java&Tab;script&colon;alert(1)">x</a>',
    "[x](javascript:alert(1))",
    "[x]( javascript: alert(1))",
    "[x]: javascript:alert(1)",
    "<vbscript:x>",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
]
SAFE = [
    "a < b and b > c",
    "JavaScript: the good parts. It is written in javascript: see below.",
    "x <b>bold</b> and <i>italic</i>, <a href='https://example.org/?a=1&b=2'>link</a>",
    "set once = 1, on top = 2",
    "a description and a linked form",
    "fish &amp; chips &lt;script&gt;",
    "data: text/html is a media type",
]


@pytest.mark.parametrize("text", UNSAFE)
def test_unsafe_markup_is_found_and_masking_makes_it_safe(text: str) -> None:
    """Tags that run or load, event handlers, script URLs, also when they are disguised."""
    policy = FilterSpec.model_validate({"output": {"markup": "mask"}}).policy
    assert policy is not None
    finds = policy.find(text)
    assert finds
    assert list(markup.spans(masked(text, finds))) == []


@pytest.mark.parametrize("text", SAFE)
def test_plain_text_and_harmless_markup_pass(text: str) -> None:
    """A comparison, a word in prose, a bold word, a link."""
    assert list(markup.spans(text)) == []


def test_of_what_overlaps_all_is_masked_and_the_refusal_wins() -> None:
    """An address within a secret leaves nothing of the secret, and is refused with it."""
    spec = {"output": {"email": "mask", "secret": "refuse"}}
    policy = FilterSpec.model_validate(spec).policy
    assert policy is not None
    text = "password: hunter2@example.org, ok"
    finds = policy.find(text)
    assert masked(text, finds) == "[SECRET], ok"
    assert policy.refused(finds) == ["secret"]


def test_a_kinds_own_word_wins_over_the_groups() -> None:
    """`pii: mask` with `card: refuse` refuses cards, in either order of the keys."""
    for spec in ({"pii": "mask", "card": "refuse"}, {"card": "refuse", "pii": "mask"}):
        policy = FilterSpec.model_validate({"output": spec}).policy
        assert policy is not None
        assert (policy.actions["card"], policy.actions["email"]) == ("refuse", "mask")


@pytest.mark.parametrize(
    ("filters", "line", "says"),
    [
        ({"patterns": {"case": "CASE-[0-9"}}, "case:", "is no pattern: unterminated character set"),
        ({"patterns": {"case": "x*"}}, "case:", "fits the empty text"),
        ({"patterns": {"case": "CASE-[0-9]+"}}, "case:", "bound its repeats"),
        ({"patterns": {"Case": "x"}}, "Case:", "String should match pattern"),
        ({"patterns": {"card": "x"}}, "patterns:", "is a finder already"),
        ({"redact": ["moon"]}, "redact:", "there is no finder 'moon'"),
        ({"redact": ["markup"]}, "redact:", "there is no finder 'markup'"),
        ({"output": {"moon": "mask"}}, "output:", "there is no finder 'moon'"),
        ({"output": {"card": "shout"}}, "card:", "Input should be 'refuse' or 'mask'"),
        ({"redakt": ["pii"]}, "redakt:", "Extra inputs are not permitted"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_and_the_last_good_set_stays(
    tmp_path: Path, filters: Any, line: str, says: str
) -> None:
    """File, line and reason; what was in force stays in force, rules and all."""
    folder = catalog_with(tmp_path, filters={"redact": ["pii"]})
    keeper = CatalogKeeper(folder, 1.0)
    good = keeper.catalog
    catalog_with(tmp_path, filters=filters)
    keeper.reload()
    path = folder / "tasks" / f"{NOTES}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    number = 1 + next(n for n, text in enumerate(lines) if text.strip().startswith(line))
    assert keeper.stale_reason.startswith(f"{path}:{number}: ")
    assert says in keeper.stale_reason
    assert keeper.catalog is good
    assert keeper.catalog.tasks[NOTES].filters.redacting
    with pytest.raises(FileError):
        CatalogKeeper(folder, 1.0)


def test_a_task_without_filters_has_nothing_to_do() -> None:
    """No redactor is made, no policy looked at: the hot path of numbers is as it was."""
    task = Filtered(filters={}).catalog.tasks["diabetes_progression"]
    assert task.filters.redacting == ()
    assert task.filters.policy is None
    assert task.pseudonymized == ()
