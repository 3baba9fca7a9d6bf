"""A data scientist's day: a scaffold that works at once, mistakes with file and line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.features_new import AuthorError, definitions, scaffold
from tests import support

pytestmark = pytest.mark.integration


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of our own repo, without its data."""
    made = tmp_path / "feature_repo"
    ignore = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(support.ROOT / "feature_repo", made, ignore=ignore)
    monkeypatch.setenv("TWINPATH_FEAST_REDIS", "127.0.0.1:1")
    return made


def test_a_new_view_is_sound_at_once(repo: Path, tmp_path: Path) -> None:
    """The command writes a view, its rules and a test, and puts it into a feature service."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "services.cli", "features", "new", "blood_gas"),
            *(
                "--entity",
                "diabetes_patient",
                "--feature",
                "ph:Float64",
                "--feature",
                "site:String",
            ),
            *("--service", "diabetes_progression_v1", "--data-class", "internal"),
            *("--repo", str(repo), "--tests", str(tmp_path / "tests")),
        ],
        cwd=support.ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert definitions(repo)["blood_gas"] == {"ph": "DOUBLE", "site": "STRING"}
    services = (repo / "feature_services.py").read_text()
    assert "from blood_gas import blood_gas\nfrom diabetes_ratios" in services
    assert "features=[diabetes_baseline, diabetes_serum, diabetes_ratios, blood_gas]," in services
    test = (tmp_path / "tests" / "test_blood_gas.py").read_text()
    assert '"ph": "DOUBLE"' in test
    for made in (repo / "blood_gas.py", tmp_path / "tests" / "test_blood_gas.py"):
        format_check = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "100"]
        subprocess.run([*format_check, "--isolated", str(made)], check=True)


def test_a_scaffold_overwrites_nothing_and_names_what_is_wrong(repo: Path, tmp_path: Path) -> None:
    """All that is wrong at once; nothing is written."""
    before = sorted(repo.rglob("*"))
    with pytest.raises(AuthorError) as caught:
        scaffold(
            *(repo, tmp_path / "tests", "diabetes_ratios"),
            entity="nobody",
            fields={"Ph": "Float64", "site": "Text"},
            service="",
            data_class="internal",
            owner="x",
        )
    text = str(caught.value)
    for words in ("'Ph' is no name", "'Text' is no type", "is there already", "'nobody'"):
        assert words in text
    assert sorted(repo.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("tumour_views.py", "ttl=timedelta(days=90)", "ttl=timedelt(days=90)", "NameError"),
        ("entities.py", "tumour_patient = Entity(", "tumour_patient = Entity((", "SyntaxError"),
        ("validation/diabetes_serum.yaml", "feature: s2", "feature: s22", "'s22'"),
    ],
)
def test_a_mistake_names_file_and_line(
    repo: Path, file: str, old: str, new: str, words: str
) -> None:
    """In a definition as in a rule."""
    path = repo / file
    text = path.read_text()
    line = text[: text.index(old)].count("\n") + 1
    path.write_text(text.replace(old, new))
    with pytest.raises(AuthorError) as caught:
        definitions(repo)
    assert f"{path}:{line}: " in str(caught.value)
    assert words in str(caught.value)


def test_a_mistake_that_only_apply_sees_names_the_definition(repo: Path) -> None:
    """An on-demand view that does not give what its schema says."""
    path = repo / "diabetes_ratios.py"
    text = path.read_text().replace('"bmi_change": nullable', '"bmi_chance": nullable')
    path.write_text(text)
    (repo / "data").mkdir()
    with pytest.raises(AuthorError) as caught:
        definitions(repo, apply=True)
    assert f"{path}:" in str(caught.value)
