"""A missing feature is replaced by its median in the training data where the task says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deploy.training import statistics
from services.chassis.files import FileError
from services.router.assemble import assemble
from services.router.catalog import load_catalog
from tests.unit.router.ports import CATALOG
from twinpath.common.v1 import decision_pb2

TASK = "diabetes_progression"


def imputing(folder: Path) -> Path:
    """A catalog whose task imputes nulls."""
    copied = Path(shutil.copytree(CATALOG, folder / "catalog"))
    path = copied / "tasks" / f"{TASK}.yaml"
    path.write_text(path.read_text("utf-8").replace('"null": default', '"null": impute'), "utf-8")
    return copied


def test_a_null_becomes_the_training_median_and_the_record_says_so(tmp_path: Path) -> None:
    """The value stands in the model input; the handling says IMPUTED."""
    task = load_catalog(imputing(tmp_path)).tasks[TASK]
    sources = task.inputs[0].sources
    values = dict.fromkeys(sources, 1.0)
    statuses: dict[str, int] = dict.fromkeys(sources, decision_pb2.FEATURE_STATUS_PRESENT)
    missing = "diabetes_serum__s2"
    statuses[missing] = decision_pb2.FEATURE_STATUS_NULL
    made = assemble(task, {**values, missing: 0.0}, statuses, {})
    (handling,) = made.handling
    assert (handling.feature, handling.action) == (missing, decision_pb2.FEATURE_ACTION_IMPUTED)
    imputed = assemble(
        task, {**values, missing: task.medians[missing]}, dict.fromkeys(sources, 1), {}
    )
    assert made.model_input.digest == imputed.model_input.digest


def test_impute_without_statistics_is_refused_at_load(tmp_path: Path) -> None:
    """No file, one of another task, or one that lacks a feature: each is named."""
    folder = imputing(tmp_path)
    path = folder / "statistics" / f"{TASK}.yaml"
    text = path.read_text("utf-8")
    for wrong, says in (
        (
            text.replace("diabetes_serum__s2", "diabetes_serum__s22"),
            "no median of diabetes_serum__s2",
        ),
        (text.replace(f"task: {TASK}", "task: another"), "of another"),
    ):
        path.write_text(wrong, "utf-8")
        with pytest.raises(FileError, match=says):
            load_catalog(folder)
    path.unlink()
    with pytest.raises(FileError, match="there are none"):
        load_catalog(folder)


def test_changed_statistics_are_another_catalog(tmp_path: Path) -> None:
    """The version in records tells which medians were in force."""
    folder = imputing(tmp_path)
    first = load_catalog(folder)
    path = folder / "statistics" / f"{TASK}.yaml"
    path.write_text(path.read_text("utf-8") + "# changed\n", "utf-8")
    assert load_catalog(folder).version != first.version


def test_a_cards_statistics_become_the_catalogs(tmp_path: Path) -> None:
    """By view and feature; a feature that had no value has no median."""
    card = {
        "task": "t",
        "name": "m",
        "version": "3",
        "artifact": {"digest": "sha256:0"},
        "training": {"rows": 7},
        "features": [{"name": "a", "view": "v"}, {"name": "b", "view": "w"}],
        "reference_statistics": {
            "a": {"mean": 2.0, "quantiles": {"0.5": 1.5}, "null_share": 0.0},
            "b": {"null_share": 1.0},
        },
    }
    path = tmp_path / "card.json"
    path.write_text(json.dumps(card), "utf-8")
    assert statistics.main([str(path), "--catalog", str(tmp_path)]) == 0
    found = statistics.catalog_statistics(card)["features"]
    assert found["v__a"]["median"] == 1.5
    assert "median" not in found["w__b"]
    assert (tmp_path / "statistics" / "t.yaml").is_file()
    path.write_text("{}", "utf-8")
    assert statistics.main([str(path), "--catalog", str(tmp_path)]) == 1
