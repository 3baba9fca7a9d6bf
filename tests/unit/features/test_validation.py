"""Rules of features: which rows break them, and mistakes in their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.chassis.files import FileError
from services.features.definitions import (
    DataClass,
    FeatureService,
    Field,
    KeyPart,
    Output,
    Registry,
    Rule,
    Status,
    Tags,
    ViewRead,
)
from services.features.validation import Check, RuledRepo, checks_for, judge, read_rules
from twinpath.features.v1 import features_pb2

SCHEMAS = {"clicks": {"count": "INT64", "town": "STRING", "rate": "DOUBLE"}}
REGISTRY = Registry("1", "p", {}, schemas=SCHEMAS)
THERE, STALE, NULL = Status.PRESENT, Status.STALE, Status.NULL


def column(values: list[Any], statuses: list[Status]) -> Any:
    """A column of an answer."""
    made = features_pb2.FeatureColumn(statuses=[int(s) for s in statuses])  # type: ignore[misc]
    array = {int: "int64s", float: "doubles", str: "strings"}[type(values[0])]
    getattr(made.values, array).values.extend(values)
    return made


def write(folder: Path, text: str, name: str = "clicks.yaml") -> None:
    """Write a rule file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def test_range_holds_for_values_alone() -> None:
    """Both ends are inside; NaN is not; a row without a value breaks no range."""
    check = Check(0, "clicks", Rule("rate", "range", refuse=True, low=0.0, high=1.0))
    given = column([0.0, 1.0, 1.5, float("nan"), 7.0, -1.0], [THERE] * 4 + [NULL, STALE])
    assert check.broken(given) == [2, 3, 5]


def test_category_compares_kinds_too() -> None:
    """1 is not true, and a value of another kind than the schema's is in no category."""
    check = Check(0, "clicks", Rule("count", "category", refuse=True, allowed=frozenset({1, 2})))
    assert check.broken(column([1, 2, 3], [THERE] * 3)) == [2]
    assert check.broken(column(["1"], [THERE])) == [0]
    mixed = features_pb2.FeatureColumn(statuses=[1, 1])
    mixed.values.mixed.values.add().bool_value = True
    mixed.values.mixed.values.add().int64_value = 2
    assert check.broken(mixed) == [0]


def test_null_share_counts_the_last_rows_of_known_entities() -> None:
    """Ordinary nulls pass; above the share each null breaks it, until enough values came."""
    rule = Rule("rate", "null_share", refuse=False, max_share=0.5, rows=4)
    check = Check(0, "clicks", rule)
    one = [1.0]
    assert check.broken(column(one * 3, [NULL, NULL, NULL])) == []
    assert check.broken(column(one, [Status.ABSENT_ENTITY])) == []
    assert check.broken(column(one, [Status.ABSENT_FEATURE])) == [0]
    assert check.broken(column(one, [THERE])) == []
    assert check.broken(column(one, [THERE])) == []
    assert check.broken(column(one, [NULL])) == []


def test_one_row_can_break_several_rules() -> None:
    """All are named."""
    rules = [
        Rule("rate", "range", refuse=False, low=0.0, high=1.0),
        Rule("rate", "range", refuse=True, low=0.0, high=2.0),
    ]
    checks = [Check(0, "clicks", rule) for rule in rules]
    broken = judge(checks, [column([0.5, 1.5, 2.5], [THERE] * 3)])
    assert {row: [c.rule.refuse for c in found] for row, found in broken.items()} == {
        1: [False],
        2: [False, True],
    }
    assert broken[1][0].name == "clicks__rate (range)"


def test_rules_follow_a_view_under_its_alias() -> None:
    """A projection with another name has the rules of its view."""
    key = (KeyPart("user", "user", "INT64"),)
    read = ViewRead("mine", "clicks_v2", key, (Field("rate", "DOUBLE"),), 0, view="clicks")
    output = Output("mine", Field("rate", "DOUBLE"), Tags(), 0, (0, 0), None)
    service = FeatureService(
        "s", (Field("user", "INT64"),), (), (read,), (), (output,), (), DataClass.UNSPECIFIED
    )
    rule = Rule("rate", "range", refuse=True, low=0.0, high=1.0)
    (check,) = checks_for(service, {"clicks": (rule,)})
    assert (check.column, check.view) == (0, "mine")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("view: clicks\nrules:\n  - {feature: rates, range: {min: 0}}", 3, "no feature 'rates'"),
        ("view: click\nrules: []", 1, "no view 'click'"),
        ("view: clicks\nrules:\n  - {feature: town, range: {min: 0}}", 3, "town is STRING"),
        ("view: clicks\nrules:\n  - feature: rate\n    category: [1]", 4, "rate is DOUBLE"),
        ("view: clicks\nrules:\n  - {feature: rate}", 3, "exactly one of"),
        ("view: clicks\nrules:\n  - feature: rate\n    range: {min: 2, max: 1}", 4, "above max"),
        ("view: clicks\nrules:\n  - {feature: rate, rnge: {min: 2}}", 3, "Extra inputs"),
        ("view: clicks\nrules:\n  - feature: rate\n    null_share: {max: 2}", 4, "less than"),
    ],
)
def test_a_mistake_names_file_line_and_rule(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    """Each mistake can be found without a search."""
    write(tmp_path, text)
    with pytest.raises(FileError) as caught:
        read_rules(tmp_path, REGISTRY)
    assert f"{tmp_path / 'clicks.yaml'}:{line}: " in str(caught.value)
    assert words in str(caught.value)


def test_two_files_for_one_view_are_a_mistake(tmp_path: Path) -> None:
    """Nobody has to guess which one holds."""
    write(tmp_path, "view: clicks\nrules: []")
    write(tmp_path, "view: clicks\nrules: []", "more.yaml")
    with pytest.raises(FileError, match="another file"):
        read_rules(tmp_path, REGISTRY)


class Script:
    """A registry that is new when told."""

    def __init__(self) -> None:
        self.new: Registry | None = REGISTRY

    def load(self) -> Registry | None:
        """The registry, once."""
        found, self.new = self.new, None
        return found


def test_rules_change_without_the_registry(tmp_path: Path) -> None:
    """A changed file is a new registry; a broken one raises until it is mended."""
    folder = tmp_path / "validation"
    inner = Script()
    repo = RuledRepo(inner, folder)
    first = repo.load()
    assert first is not None
    assert not first.rules
    assert repo.load() is None
    write(folder, "view: clicks\nrules:\n  - {feature: rate, range: {max: 1}, action: mark}")
    second = repo.load()
    assert second is not None
    assert not second.rules["clicks"][0].refuse
    write(folder, "view: clicks\nrules: [}")
    inner.new = Registry("2", "p", {}, schemas=SCHEMAS)
    for _ in range(2):
        with pytest.raises(FileError):
            repo.load()
    write(folder, "view: clicks\nrules: []")
    third = repo.load()
    assert third is not None
    assert third.rules == {"clicks": ()}
    assert len({one.version for one in (first, second, third)}) == 3
    assert repo.load() is None
