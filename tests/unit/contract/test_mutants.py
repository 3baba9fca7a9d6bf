"""The sabotage patches are in order: headers, tests that exist, and lines that still fit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ROOT

PATCHES = sorted((ROOT / "tests" / "mutants" / "patches").glob("*.patch"))


def load_runner() -> ModuleType:
    """tests/mutants/run.py as a module."""
    spec = importlib.util.spec_from_file_location("mutants_run", ROOT / "tests/mutants/run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


runner = load_runner()


def test_every_invariant_has_a_sabotage() -> None:
    """None of the ten goes without a proof that its tests can fail."""
    assert {patch.invariant for patch in runner.read_all()} == set(runner.INVARIANTS)


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_a_patch_says_what_it_breaks_and_fits_the_code(path: Path) -> None:
    """A change that moves what a patch touches is seen here, long before anybody runs it."""
    patch = runner.read_patch(path)
    assert patch.breaks
    for test in patch.tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text()
        assert not name or f"def {name.split('[')[0]}(" in text, test
    done = subprocess.run(
        ["git", "apply", "--check", str(path)],
        cwd=ROOT,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def case(kind: str = "", message: str = "") -> ET.Element:
    """Return a test case of a report."""
    element = ET.Element("testcase", name="test_x[1]")
    if kind:
        ET.SubElement(element, kind, message=message)
    return element


@pytest.mark.parametrize(
    ("code", "cases", "killed"),
    [
        (1, [case(), case("failure", "assert 1 == 2")], True),
        (1, [case("failure", "Failed: DID NOT RAISE <class 'ValueError'>")], True),
        (0, [case()], False),
        (1, [case("failure", "NameError: name 'x' is not defined")], False),
        (1, [case("failure", "Failed: Timeout (>60.0s) from pytest-timeout.")], False),
        (1, [case("error", "fixture failed")], False),
        (1, [case("failure", "assert 1 == 2"), case("error", "fixture failed")], False),
        (4, [], False),
        (-1, [], False),
    ],
)
def test_only_a_test_that_fails_by_what_it_asserts_counts(
    code: int, cases: list[ET.Element], killed: bool
) -> None:
    """Green, hanging, broken and not collected are no proof."""
    assert runner.judge(code, cases, "output")[0] is killed


@pytest.mark.parametrize(
    "text",
    ["--- a/x\n", "invariant: 3\ntests: x\n--- a/x\n", "invariant: 12\nbreaks: b\ntests: x\n"],
)
def test_a_header_that_is_not_whole_is_refused(tmp_path: Path, text: str) -> None:
    """A patch without its reason or its tests is none."""
    path = tmp_path / "p.patch"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"p\.patch"):
        runner.read_patch(path)
