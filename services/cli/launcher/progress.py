"""What the launcher says while it works; who listens decides how it looks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """Hears about steps. Steps may overlap; each has a name of its own."""

    def begin(self, step: str) -> None:
        """A step begins."""

    def note(self, step: str, line: str) -> None:
        """A running step has something to say."""

    def end(self, step: str, seconds: float, *, ok: bool) -> None:
        """A step is over."""


class Silent:
    """Says nothing. For tests."""

    def begin(self, step: str) -> None:
        """Nothing."""

    def note(self, step: str, line: str) -> None:
        """Nothing."""

    def end(self, step: str, seconds: float, *, ok: bool) -> None:
        """Nothing."""


@contextlib.contextmanager
def step(progress: Progress, name: str) -> Iterator[None]:
    """Report a step from begin to end."""
    started = time.perf_counter()
    progress.begin(name)
    try:
        yield
    except BaseException:
        progress.end(name, time.perf_counter() - started, ok=False)
        raise
    progress.end(name, time.perf_counter() - started, ok=True)
