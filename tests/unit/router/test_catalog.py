"""The catalog's files: a mistake names file, line and rule, and the last good set stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services.chassis.files import FileError
from services.router.catalog import CatalogKeeper, load_catalog
from tests.unit.router.ports import CATALOG


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the real catalog."""
    return Path(shutil.copytree(CATALOG, tmp_path / "catalog"))


def change(path: Path, old: str, new: str) -> int:
    """Replace a text in a file; return the line, from 1, where it stood."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def mistakes(folder: Path) -> str:
    """Load a broken catalog and return what it says."""
    with pytest.raises(FileError) as caught:
        load_catalog(folder)
    return str(caught.value)


def test_the_committed_catalog_loads() -> None:
    """The catalog in deploy/ is valid, and both tasks are in it."""
    assert {"tumour_triage", "diabetes_progression"} <= set(load_catalog(CATALOG).tasks)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("data_class: internal", "data_class: secret", "data_class"),
        ("shape: [1, 13]", "shape: [1, 12]", "does not hold 13 elements"),
        ("path: local,", "path: moon,", "path"),
        ("summary: Disease", "sumary: Disease", "sumary"),
        ("      - diabetes_baseline__age", "      - age", "age is neither view__feature"),
        ("id: diabetes_large, path: remote", "id: diabetes_small, path: remote", "stand twice"),
        (", provider: standin", "", "names its provider"),
        ("path: local,", "path: local, bulk: true,", "only a remote candidate can be bulk"),
    ],
)
def test_a_mistake_in_a_task_names_file_line_and_rule(
    folder: Path, old: str, new: str, says: str
) -> None:
    """Each mistake is reported with the file, a line in it, and what is wrong."""
    path = folder / "tasks" / "diabetes_progression.yaml"
    change(path, old, new)
    text = mistakes(folder)
    assert f"{path}:" in text
    assert says in text
    assert int(text.split(f"{path}:")[1].split(":")[0]) >= 1


def test_the_line_is_the_mistakes_own(folder: Path) -> None:
    """The line is where the wrong value stands, not where the file starts."""
    path = folder / "tasks" / "tumour_triage.yaml"
    line = change(path, "data_class: restricted", "data_class: secret")
    assert f"{path}:{line}: data_class" in mistakes(folder)


@pytest.mark.parametrize(
    ("require", "says"),
    [
        ('purpose != "marketing" &&', "parse"),
        ("moon_phase == 3", "unknown fact moon_phase"),
        ('candidate.colour == "red"', "unknown fact candidate.colour"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_at_load(
    folder: Path, require: str, says: str
) -> None:
    """A rule that does not compile or names an unknown fact is refused with its line."""
    path = folder / "policies" / "base.yaml"
    line = change(path, 'purpose != "marketing"', require)
    text = mistakes(folder)
    assert f"{path}:{line}: no_marketing_with_patients" in text
    assert says in text.lower()


def test_a_rule_that_fails_while_evaluated_excludes(folder: Path) -> None:
    """A rule whose evaluation errors counts as not passed: it fails closed."""
    path = folder / "policies" / "base.yaml"
    change(path, 'purpose != "marketing"', "consents[3] == purpose")
    policy = load_catalog(folder).policy
    facts = {
        "data_class": 1,
        "task": "tumour_triage",
        "tenant": "",
        "caller": "",
        "purpose": "",
        "residency": "",
        "consents": (),
        "priority": "normal",
    }
    denials = policy.denials(facts, {"path": "local"}, "c")
    assert [d.rule for d in denials] == ["no_marketing_with_patients"]
    assert "the rule failed" in denials[0].message


def test_the_last_good_catalog_stays_in_force(folder: Path) -> None:
    """After a broken change the keeper serves what it had, and says that it is stale."""
    keeper = CatalogKeeper(folder, 1.0)
    good = keeper.catalog.version
    path = folder / "tasks" / "tumour_triage.yaml"
    change(path, "data_class: restricted", "data_class: secret")
    keeper.reload()
    assert keeper.catalog.version == good
    assert "data_class" in keeper.stale_reason
    change(path, "data_class: secret", "data_class: confidential")
    keeper.reload()
    assert keeper.catalog.version != good
    assert not keeper.stale_reason


def test_the_version_follows_the_content(folder: Path) -> None:
    """The catalog's version changes with any file, and only then."""
    first = load_catalog(folder)
    assert load_catalog(folder).version == first.version
    change(folder / "policies" / "base.yaml", "Restricted data never", "Secret data never")
    second = load_catalog(folder)
    assert second.version != first.version
    assert second.policy.version != first.policy.version
