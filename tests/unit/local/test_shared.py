"""Shared memory: pieces that don't overlap, and nothing left by processes that are no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.local import shared
from services.local.shared import Arena, Slot

PAGE = 4096


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "free", "retire", "wait"]), st.integers(1, 5 * PAGE)),
        max_size=40,
    )
)
def test_pieces_never_overlap_and_hold_what_was_put(
    tmp_path: Path, steps: list[tuple[str, int]]
) -> None:
    """Whatever is put, freed, or left to a server that may still read it."""
    arena = Arena(16 * PAGE, tmp_path)
    held: list[tuple[Slot, bytes]] = []
    limbo: list[tuple[float, Slot, bytes]] = []
    now = 0.0
    try:
        for what, size in steps:
            if what == "put":
                content = os.urandom(size)
                slot = arena.put(content, now)
                if slot is not None:
                    held.append((slot, content))
            elif what == "wait":
                now += 50.0
            elif held:
                slot, content = held.pop(size % len(held))
                if what == "free":
                    arena.free(slot)
                else:
                    arena.retire(slot, now)
                    limbo.append((now + 120.0, slot, content))
            limbo = [entry for entry in limbo if entry[0] > now]
            with (tmp_path / arena.name).open("rb") as file:
                for slot, content in [*held, *(entry[1:] for entry in limbo)]:
                    file.seek(slot.offset)
                    assert file.read(len(content)) == content
    finally:
        arena.close()


def test_what_finds_no_room_is_told(tmp_path: Path) -> None:
    """None, so that it goes by wire; with room again it goes in."""
    arena = Arena(4 * PAGE, tmp_path)
    try:
        first = arena.put(bytes(3 * PAGE), 0.0)
        assert first is not None
        assert arena.put(bytes(2 * PAGE), 0.0) is None
        arena.retire(first, 0.0)
        assert arena.put(bytes(2 * PAGE), 100.0) is None  # the server may still read it
        assert arena.put(bytes(2 * PAGE), 121.0) is not None
    finally:
        arena.close()


def test_files_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    """A killed process can't clean up; the next one does, and leaves its neighbours alone."""
    code = (
        "import sys, time; from pathlib import Path; from services.local.shared import Arena;"
        "a = Arena(4096, Path(sys.argv[1])); print(a.name, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    (tmp_path / "of-somebody-else").touch()
    assert shared.is_live(name, tmp_path)
    assert shared.sweep(tmp_path) == []
    process.kill()
    process.wait()
    process.stdout.close()
    assert not shared.is_live(name, tmp_path)
    assert shared.sweep(tmp_path) == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["of-somebody-else"]


def test_a_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """/dev/shm is everybody's: a planted link must not make us lock or remove its target."""
    target = tmp_path / "target"
    target.write_text("x")
    (tmp_path / f"{shared.PREFIX}planted").symlink_to(target)
    assert shared.sweep(tmp_path) == []
    assert target.exists()


def test_a_file_system_that_is_full_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write there would be a SIGBUS; the tensor goes by wire."""
    arena = Arena(4 * PAGE, tmp_path)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    try:
        assert arena.put(b"x", 0.0) is None
    finally:
        arena.close()
