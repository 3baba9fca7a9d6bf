"""Shows that the tests of the invariants can fail: breaks each on purpose, and runs them.

    python tests/mutants/run.py             all patches
    python tests/mutants/run.py NAME ...    those whose names contain NAME
    python tests/mutants/run.py --head ...  sabotage the last commit, not the working tree
    python tests/mutants/run.py --list      say what there is, run nothing

A patch in patches/ sabotages one invariant. Its header, before the diff, names the invariant by
its number in the design, says what is broken, and names the tests that must turn red:

    invariant: 3
    breaks: the vendor is called before the INTENT is durable
    tests: tests/unit/router/test_pipeline.py::test_nothing_leaves_before_the_intent_is_durable

Each mutant is a copy of the working tree of its own; the copy is what gets imported, which is
checked first, because an editable install would quietly test the original. The named tests must
pass before, and at least one of them must fail after: by what it asserts, not because the mutant
can't be imported or the test hangs. Exits with 1 if a mutant survives or a patch does not apply.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHES = Path(__file__).resolve().parent / "patches"
INVARIANTS = range(1, 11)
_LIMIT_S = 240
# What a mutant that is merely broken raises: such a patch proves nothing about the tests.
_BROKEN = ("ImportError", "ModuleNotFoundError", "SyntaxError", "NameError", "UnboundLocalError")


@dataclass(frozen=True)
class Patch:
    """One sabotage."""

    path: Path
    invariant: int
    breaks: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant. `killed` is what we want."""

    patch: Patch
    killed: bool
    text: str
    seconds: float


def read_patch(path: Path) -> Patch:
    """Read a patch's header.

    Raises:
        ValueError: a line of it is missing or wrong.
    """
    head: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("--- "):
            break
        key, found, value = line.partition(": ")
        if found:
            head[key.strip()] = value.strip()
    missing = {"invariant", "breaks", "tests"} - head.keys()
    if missing:
        raise ValueError(f"{path.name}: the header lacks {', '.join(sorted(missing))}")
    number = int(head["invariant"])
    if number not in INVARIANTS:
        raise ValueError(f"{path.name}: there is no invariant {number}")
    return Patch(path, number, head["breaks"], tuple(head["tests"].split()))


def read_all(folder: Path = PATCHES) -> list[Patch]:
    """Read every patch, ordered by invariant, then by name."""
    found = [read_patch(path) for path in sorted(folder.glob("*.patch"))]
    return sorted(found, key=lambda patch: (patch.invariant, patch.name))


def copy_tree(target: Path, *, committed: bool = False) -> None:
    """Copy what git knows or would add; nothing that is ignored, and no environment.

    `committed` takes the last commit's files instead of the working tree's.
    """
    if committed:
        target.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)
        return
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file():
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)


def environment(tree: Path) -> dict[str, str]:
    """Return an environment in which the tree's own code is imported first."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    return {
        **kept,
        "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'protos'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tree / ".hypothesis"),
    }


def check_imports(tree: Path) -> None:
    """Make sure that a test in the tree imports the tree's code.

    Raises:
        SystemExit: it does not.
    """
    code = (
        "import services.chassis, twinpath.telemetry as t; print(services.__path__[0], t.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=environment(tree),
        capture_output=True,
        text=True,
        check=True,
    )
    places = [Path(place).resolve() for place in done.stdout.split()]
    if not all(place.is_relative_to(tree.resolve()) for place in places):
        sys.exit(f"the copy's code is not what is imported, but {done.stdout}")


def run_tests(
    tree: Path, tests: Sequence[str], *options: str, limit_s: float = _LIMIT_S
) -> tuple[int, list[ET.Element], str]:
    """Run tests in a tree. Return pytest's exit code, its test cases, and its output."""
    report = tree / ".report.xml"
    report.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=60"),
        *("--rootdir", str(tree), f"--junitxml={report}", *options, *tests),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment(tree),
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return -1, [], f"no end within {limit_s} s"
    cases = list(ET.parse(report).getroot().iter("testcase")) if report.exists() else []
    return done.returncode, cases, done.stdout + done.stderr


def judge(code: int, cases: Iterable[ET.Element], output: str) -> tuple[bool, str]:
    """Tell whether tests turned red for the right reason, and say what happened."""
    failures = [case for case in cases if case.find("failure") is not None]
    errors = [case for case in cases if case.find("error") is not None]
    if code == 0:
        return False, "SURVIVED: the tests are still green"
    if not failures or errors:
        last = (output.strip().splitlines() or ["no output"])[-1]
        return False, f"NO VERDICT: the tests could not be run: {last}"
    texts = [str(case.find("failure").get("message", "")) for case in failures]  # type: ignore[union-attr]
    good = [t for t in texts if not t.startswith(_BROKEN) and "Timeout" not in t.split("\n")[0]]
    if not good:
        return False, f"NO VERDICT: the mutant is broken: {texts[0].splitlines()[0][:90]}"
    names = ", ".join(dict.fromkeys(str(case.get("name")).split("[")[0] for case in failures))
    return True, f"killed by {names}"


def mutate(patch: Patch, folder: Path, *, committed: bool) -> Verdict:
    """Copy the tree, apply the patch, run its tests."""
    start = time.monotonic()
    tree = folder / patch.name
    copy_tree(tree, committed=committed)
    applied = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(patch.path)],
        cwd=tree,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if applied.returncode != 0:
        text = applied.stderr.strip().splitlines()
        killed, text = False, f"DOES NOT APPLY: {text[0] if text else 'git apply failed'}"
    else:
        killed, text = judge(*run_tests(tree, patch.tests, "--maxfail=3"))
    shutil.rmtree(tree, ignore_errors=True)
    return Verdict(patch, killed, text, time.monotonic() - start)


def check_green(patches: Sequence[Patch], folder: Path, *, committed: bool) -> list[Verdict]:
    """Run every named test once on an unbroken copy. Return the patches whose tests are not green.

    Raises:
        SystemExit: the tests can't be run at all.
    """
    tree = folder / "unbroken"
    copy_tree(tree, committed=committed)
    check_imports(tree)
    everything = list(dict.fromkeys(test for patch in patches for test in patch.tests))
    code, cases, output = run_tests(tree, everything, limit_s=_LIMIT_S * 2)
    if code not in (0, 1) or not cases:
        sys.exit(f"{output[-4000:]}\nthe named tests can't be run")
    marks = ("failure", "error", "skipped")
    bad = [case for case in cases if any(case.find(mark) is not None for mark in marks)]
    return [
        Verdict(patch, killed=False, text="NOT GREEN before any sabotage", seconds=0.0)
        for patch in patches
        if any(_is_of(case, test) for case in bad for test in patch.tests)
    ]


def _is_of(case: ET.Element, test: str) -> bool:
    """Tell whether a case of a report belongs to a test as a header names it."""
    file, _, name = test.partition("::")
    module = file.removesuffix(".py").replace("/", ".")
    if not (str(case.get("classname")) + ".").startswith(module + "."):
        return False
    return not name or str(case.get("name")).split("[")[0] == name.split("::")[-1].split("[")[0]


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of patches' names; none: all")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--head", action="store_true", help="the last commit, not the working tree")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="at once")
    arguments = parser.parse_args()
    patches = [
        patch
        for patch in read_all()
        if not arguments.names or any(name in patch.name for name in arguments.names)
    ]
    if arguments.list:
        for patch in patches:
            sys.stdout.write(f"{patch.invariant:>2}  {patch.name:<34} {patch.breaks}\n")
        return 0
    start = time.monotonic()
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="twinpath-mutants-") as scratch:
        folder = Path(scratch).resolve()
        red = check_green(patches, folder, committed=arguments.head)
        ready = [patch for patch in patches if patch not in [verdict.patch for verdict in red]]
        sys.stdout.write(f"the named tests of {len(ready)} patches are green before\n")
        with ThreadPoolExecutor(arguments.jobs) as pool:
            verdicts = pool.map(
                lambda patch: mutate(patch, folder, committed=arguments.head), ready
            )
            for verdict in itertools.chain(red, verdicts):
                mark = "ok" if verdict.killed else "!!"
                patch = verdict.patch
                sys.stdout.write(
                    f"{mark} {patch.invariant:>2}  {patch.name:<34} {verdict.seconds:5.1f} s"
                    f"  {verdict.text}\n"
                )
                sys.stdout.flush()
                survivors += not verdict.killed
    total = time.monotonic() - start
    sys.stdout.write(f"{len(patches) - survivors} of {len(patches)} killed in {total:.0f} s\n")
    return 1 if survivors or not patches else 0


if __name__ == "__main__":
    sys.exit(main())
