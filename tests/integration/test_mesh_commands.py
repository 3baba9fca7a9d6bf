"""`twinpath up` and `twinpath demo` as a person runs them: what they show, and what they leave."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.cli import description
from services.cli.description import MeshNotRunningError
from tests.integration.conftest import MeshUnderTest
from tests.support import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def environment(home: Path) -> dict[str, str]:
    """The environment of a command whose mesh lives in `home`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    triton = os.environ.get("TWINPATH_TRITON_ENV")
    named = {"TWINPATH_TRITON_ENV": triton} if triton else {}
    return {**kept, **named, "TWINPATH_HOME": str(home), "COLUMNS": "120"}


def command(*arguments: str) -> list[str]:
    """The command line of `twinpath ARGUMENTS`."""
    return [sys.executable, "-m", "services.cli", *arguments]


def alive(pids: list[int]) -> list[int]:
    """Those processes that still run; zombies do not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


@pytest.fixture
def trained_home(session_mesh: MeshUnderTest, tmp_path: Path) -> Path:
    """A folder of its own, with the models that the session has trained already."""
    source = session_mesh.launcher.layout.home
    for name in ("models", "artifacts", "signing"):
        shutil.copytree(source / name, tmp_path / name)
    shutil.copy2(source / "models.json", tmp_path)
    return tmp_path


def test_the_demo_holds_all_five_points_and_leaves_nothing(trained_home: Path) -> None:
    """Exit code 0, five points with all their checks, and no process afterwards."""
    with subprocess.Popen(
        command("demo"),
        env=environment(trained_home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        pids: list[int] = []
        end = time.monotonic() + 300
        while not pids and demo.poll() is None and time.monotonic() < end:
            try:
                pids = list(description.read(trained_home / "demo" / "run").pids.values())
            except MeshNotRunningError:
                time.sleep(0.1)
        shown, _ = demo.communicate(timeout=300)
    assert demo.returncode == 0, shown
    assert not re.search(r"^\s*✗", shown, re.MULTILINE), shown
    assert len(pids) >= 9
    assert not alive(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_up_serves_and_leaves_nothing_even_when_it_is_killed(trained_home: Path) -> None:
    """`up` prints an example call that works; KILL on it takes every process along."""
    log = trained_home / "up.log"
    with log.open("w") as out:
        up = subprocess.Popen(
            command("up"), env=environment(trained_home), cwd=ROOT, stdout=out, stderr=out
        )
    try:
        end = time.monotonic() + 300
        while "Ctrl-C stops everything" not in log.read_text():
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        pids = list(description.read(trained_home / "run").pids.values())
        asked = subprocess.run(
            command("infer", "diabetes_progression", "--entity", "patient_id=17"),
            env=environment(trained_home),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        second = subprocess.run(
            command("up"),
            env=environment(trained_home),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        up.send_signal(signal.SIGKILL)
        up.wait()
    assert asked.returncode == 0, asked.stderr
    assert "progression = " in asked.stdout
    assert second.returncode == 1
    assert "a mesh runs already" in second.stderr
    end = time.monotonic() + 60
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(pids)
    with pytest.raises(MeshNotRunningError, match="is gone"):
        description.read(trained_home / "run")
