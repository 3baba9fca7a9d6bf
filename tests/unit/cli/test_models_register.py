"""A new local model as a candidate of its parent's tasks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services.cli.models_register import NoTaskError, register
from services.router.catalog import load_catalog
from tests.support import ROOT

TASK = "diabetes_progression"


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A copy of the shipped catalog."""
    return Path(shutil.copytree(ROOT / "deploy" / "catalog", tmp_path / "catalog"))


def test_it_stands_right_after_its_parent_and_the_rest_stays(catalog: Path) -> None:
    """One line more, its lineage beside it; the router can read the catalog, and nothing else moved."""
    file = catalog / "tasks" / f"{TASK}.yaml"
    before = file.read_text().splitlines()
    assert register(catalog, "diabetes_small", "diabetes_small_int8", "INT8 of version 1") == [TASK]
    after = file.read_text().splitlines()
    (new,) = [line for line in after if line not in before]
    assert [line for line in after if line != new] == before
    assert "# INT8 of version 1" in new
    task = load_catalog(catalog).tasks[TASK]
    ids = [candidate.id for candidate in task.candidates]
    assert ids[ids.index("diabetes_small") + 1] == "diabetes_small_int8"
    made = task.candidates[ids.index("diabetes_small_int8")]
    assert (made.path, made.model, made.version) == ("local", "diabetes_small_int8", "live")


def test_twice_is_once(catalog: Path) -> None:
    """A model that is quantized again is a candidate already."""
    for _ in range(2):
        assert register(catalog, "diabetes_small", "d8", "x") == [TASK]
    text = (catalog / "tasks" / f"{TASK}.yaml").read_text()
    assert text.count("model: d8") == 1


def test_a_model_that_no_task_names_is_refused(catalog: Path) -> None:
    """A vendor's model is no parent either."""
    for parent in ("nobody", "diabetes_large"):
        with pytest.raises(NoTaskError, match="no task"):
            register(catalog, parent, "x", "x")
