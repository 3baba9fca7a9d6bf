"""Minimization: models get what the task's inputs list, and of an entity's key a pseudonym."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import FailedPreconditionError, InvalidArgumentError
from services.chassis.files import FileError
from services.router.catalog import load_catalog
from services.router.pseudonyms import Pseudonyms
from tests.unit.router.filtered import NOTES, Filtered, about, catalog_with, said, seen
from twinpath.common.v1 import context_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE


def inputs(source: str) -> list[dict[str, Any]]:
    """The inputs of a note task with one text."""
    return [{"name": "text_input", "datatype": "BYTES", "shape": [1], "from": [source]}]


FIELDS = {
    "note": {"type": "string"},
    "ward": {"type": "string", "default": "none"},
    "doctor": {"type": "string", "default": "nobody"},
}


async def ask(world: Filtered, note_id: str = "n-1", **fields: str) -> Any:
    """Decide about a note with these fields."""
    request = about("A note.", note_id)
    for name, value in fields.items():
        request.fields[name].string_value = value
    await world.board.refresh()
    return await world.pipeline.decide(request, world.call())


async def test_a_field_that_no_input_lists_reaches_no_model() -> None:
    """The template names two of three fields; the third and the entity are nowhere in the input."""
    world = Filtered(fields=FIELDS, inputs=inputs("text:Ward {ward}: {note}"))
    await ask(world, "entity-7", ward="W4", doctor="canary-doctor")
    assert seen(world.items[0]) == "Ward W4: A note."
    whole = world.items[0].input.SerializeToString()
    assert b"canary-doctor" not in whole
    assert b"entity-7" not in whole


async def test_a_value_is_never_a_template() -> None:
    """A field whose text looks like a placeholder is not filled in from another field."""
    world = Filtered(fields=FIELDS, inputs=inputs("text:{note} {ward}"))
    await ask(world, ward="{doctor} {note_id}", doctor="canary-doctor")
    assert seen(world.items[0]) == "A note. {doctor} {note_id}"


async def test_an_unknown_field_is_refused_by_name() -> None:
    """What the contract does not list is no field, and no model hears of it."""
    world = Filtered(fields=FIELDS, inputs=inputs("field:note"))
    with pytest.raises(InvalidArgumentError) as caught:
        await ask(world, colour="red")
    assert caught.value.violations[0][0] == "fields[colour]"
    assert world.items == []


@pytest.mark.parametrize("source", ["text:About {note_id}: {note}", "entity:note_id"])
async def test_models_get_a_pseudonym_of_a_key_and_the_caller_the_key(source: str) -> None:
    """In a template and as an input of its own; in the answer the key stands again."""
    world = Filtered(fields=FIELDS, inputs=inputs(source))
    reply = await ask(world, "patient-4711")
    assert "patient-4711" not in seen(world.items[0])
    assert "[NOTE_ID_" in seen(world.items[0])
    assert "patient-4711" in said(reply.outputs)
    assert list(reply.filters_applied) == ["pseudonymized:note_id=1"]


async def test_a_pseudonym_is_stable_and_joins_nothing_across_tenants() -> None:
    """The same entity has the same pseudonym each time and on either path; another tenant's not."""
    world = Filtered(inputs=inputs("entity:note_id"))
    for tenant, note_id, path in (
        ("acme", "n-1", LOCAL), ("acme", "n-1", REMOTE), ("acme", "n-2", LOCAL), ("other", "n-1", LOCAL)
    ):  # fmt: skip
        world.tenant = tenant
        await world.note("A note.", note_id, only_path=path)
    first, second, third = (seen(item) for item in world.local.items)
    assert seen(world.remote.items[0]) == first
    assert len({first, second, third}) == 3


def test_a_pseudonym_depends_on_everything_it_is_made_of() -> None:
    """Secret, tenant, task, key and value each change it, and parts don't run into each other."""
    one, two = Pseudonyms(b"1" * 32), Pseudonyms(b"2" * 32)
    made = [
        one.of("t", "task", "k", "v"), two.of("t", "task", "k", "v"), one.of("u", "task", "k", "v"),
        one.of("t", "other", "k", "v"), one.of("t", "task", "l", "v"), one.of("t", "task", "k", "w"),
        one.of("tt", "ask", "k", "v"), one.of("t", "task", "k", 1), one.of("t", "task", "k", "1"),
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    assert made[0] == one.of("t", "task", "k", "v")


async def test_a_key_in_a_free_text_is_replaced_where_the_task_says_so() -> None:
    """As a word of its own only; within a longer word it stays."""
    world = Filtered(filters={"entity_keys": ["note_id"]})
    reply = await world.note("n-17 and n-1, (n-1) xn-1.", "n-1")
    given = seen(world.items[0])
    assert given.startswith("n-17 and [NOTE_ID_")
    assert given.endswith("]) xn-1.")
    assert said(reply.outputs) == "n-17 and n-1, (n-1) xn-1."
    assert list(reply.filters_applied) == ["pseudonymized:note_id=2"]


async def test_without_a_key_for_pseudonyms_such_a_task_is_refused() -> None:
    """Rather than show the entity; the error names the setting, and no model is asked."""
    world = Filtered(pseudonyms=None, inputs=inputs("entity:note_id"))
    with pytest.raises(FailedPreconditionError) as caught:
        await world.note("A note.")
    assert caught.value.reason == "PSEUDONYM_KEY_MISSING"
    assert world.items == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"inputs": inputs("entity:colour")}, "which is no key of the entity"),
        ({"inputs": inputs("text:{colour}")}, "which is no field"),
        (
            {"fields": {"note_id": {"type": "string"}}, "inputs": inputs("text:{note_id}")},
            "is a key and a field",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "from": ["entity:note_id"]}]},
            "only a text can hold a pseudonym",
        ),
        ({"filters": {"entity_keys": ["colour"]}}, "is no key of this task's entity"),
        (
            {"fields": {"note_id": {"type": "string"}}, "inputs": inputs("field:note_id"),
             "filters": {"entity_keys": ["note_id"]}},
            "can't be told from it",
        ),
    ],
)  # fmt: skip
def test_a_key_that_cannot_be_used_is_refused_at_load(tmp_path: Path, keys: Any, says: str) -> None:
    """The file and what is wrong with it."""
    folder = catalog_with(tmp_path, **keys)
    with pytest.raises(FileError) as caught:
        load_catalog(folder)
    assert f"{folder / 'tasks' / NOTES}.yaml:" in str(caught.value)
    assert says in str(caught.value)
