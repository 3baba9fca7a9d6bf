"""The chaos table: counts add up, a stopped run goes on, and a broken promise is never hidden."""

from __future__ import annotations

from collections import Counter

from tests.chaos.__main__ import Done, Part, live, read, write


def test_a_run_goes_on_and_keeps_what_broke(tmp_path):
    """Seeds follow on one another over two runs; a broken promise stays, with its seed."""
    state, seen = tmp_path / "chaos.json", []

    def step(seed: int) -> Counter[str]:
        seen.append(seed)
        if seed == 3:
            raise AssertionError("a promise")
        return Counter(times=1, acknowledged=10)

    part = Part("disk", "something", 6, step)
    for wanted in (2, 6):
        done = read(state)
        so_far = done.setdefault("disk", Done())
        live(part, so_far, wanted, float("inf"), lambda kept=done: write(state, kept))
    assert seen == [1, 2, 3, 4, 5, 6]
    kept = read(state)["disk"]
    assert kept.counts == Counter(times=6, acknowledged=50)
    assert kept.broken == ["seed 3: a promise"]
