"""What the embedded Triton needs is checked before anything starts, with a remedy in the error."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.embedded.triton_runtime import (
    PythonFacts,
    TritonUnavailableError,
    check_machine,
    find_libpython,
    find_runtime,
)


def facts(**changes) -> PythonFacts:
    """An interpreter that knows no library and no folder that exists."""
    nothing: PythonFacts = {
        "version": "3.99",
        "executable": "/opt/python",
        "base": "/no/such/base",
        "libdir": "/no/such/lib",
        "names": ["libpython3.99.a"],
        "multiarch": "x86_64-linux-gnu",
        "site": "/no/such/site",
    }
    return nothing | changes


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (("darwin", "arm64", None), "Linux x86-64 only, and this is darwin arm64"),
        (("linux", "aarch64", (2, 39)), "this is linux aarch64"),
        (("linux", "x86_64", (2, 31)), "glibc 2.35 or newer, and this machine has glibc 2.31"),
        (("linux", "x86_64", None), "another C library"),
    ],
)
def test_a_machine_that_cannot_run_it_is_told_why_and_what_to_do(machine, words) -> None:
    """Every refusal names the fact and the way out."""
    with pytest.raises(TritonUnavailableError, match=words) as refusal:
        check_machine(*machine)
    assert "TWINPATH_TRITON_URL" in str(refusal.value)


def test_a_fitting_machine_passes() -> None:
    """Linux x86-64 with a new enough glibc is accepted."""
    check_machine("linux", "x86_64", (2, 35))


def test_a_missing_environment_names_the_command_that_makes_it(tmp_path: Path) -> None:
    """The first start on a fresh checkout says what to run."""
    with pytest.raises(TritonUnavailableError, match="make env"):
        find_runtime(tmp_path / "nothing")


@pytest.mark.parametrize("place", ["libdir", "base"])
def test_libpython_is_found_where_the_interpreter_keeps_it(tmp_path: Path, place: str) -> None:
    """LIBDIR first, then the folder of the base interpreter."""
    folder = tmp_path if place == "libdir" else tmp_path / "lib"
    folder.mkdir(exist_ok=True)
    library = folder / "libpython3.99.so.1.0"
    library.touch()
    assert find_libpython(facts(**{place: str(tmp_path)})) == library


def test_an_interpreter_without_a_shared_library_is_noticed() -> None:
    """A static libpython does not count."""
    assert find_libpython(facts()) is None


def test_the_message_about_libpython_holds_the_command_that_installs_it(tmp_path: Path) -> None:
    """A user of Debian can copy the remedy."""
    environment = tmp_path / "env"
    site = environment / "site"
    server = site / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    server.parent.mkdir(parents=True)
    server.touch()
    python = environment / "bin" / "python"
    python.parent.mkdir()
    import json

    python.write_text(f"#!/bin/sh\necho '{json.dumps(facts(site=str(site)))}'\n")
    python.chmod(0o755)
    with pytest.raises(TritonUnavailableError, match=r"apt install libpython3\.99"):
        find_runtime(environment)
