"""One supervised process: started with a log file, ready by a real check, never left behind."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_GUARD = Path(__file__).with_name("guard.py")
_POLL_S = 0.03
_TAIL_LINES = 20
_TAIL_BYTES = 256 * 1024


class ProcessError(RuntimeError):
    """A supervised process did not start, or ended by itself; the text holds its last log lines."""


async def _ready_at_once() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run and how to tell that it works.

    Attributes:
        name: Shown in messages.
        argv: Program and arguments. Never a shell.
        log_path: Where its stdout and stderr go; appended to, the folder is made.
        env: The whole environment of the process; nothing is inherited silently.
        cwd: Its working directory; None means ours.
        ready: Asks the process itself (a ping, a health call). May raise: that counts as not yet,
            and the last such error stands in the message when time is up.
        ready_timeout_s: Seconds until a process that is not ready is given up and killed.
        stop_grace_s: Seconds between TERM and KILL.
    """

    name: str
    argv: tuple[str, ...]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    cwd: Path | None = None
    ready: Callable[[], Awaitable[bool]] = _ready_at_once
    ready_timeout_s: float = 30.0
    stop_grace_s: float = 10.0


class ManagedProcess:
    """Runs one `ProcessSpec` in a process group of its own.

    It is bound to no event loop, so a fixture of any scope may hold it. Start it from a thread that
    lives as long as it should: on Linux the kernel kills it when the starting thread ends.
    """

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's; raises ProcessError before the start."""
        if self._popen is None:
            raise ProcessError(f"{self.spec.name} was not started")
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit status (negative: the signal), or None while it runs or before the start."""
        return None if self._popen is None else self._popen.poll()

    async def start(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            ProcessError: It ended, or was not ready in time. It has been killed by then.
        """
        if self.running:
            raise ProcessError(f"{self.spec.name} runs already, as pid {self.pid}")
        self._launch()
        try:
            await self._wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    async def stop(self) -> int | None:
        """TERM to the process group, KILL after the grace period; returns the exit status."""
        popen = self._popen
        if popen is None:
            return None
        if popen.poll() is None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)  # a suspended process could not take the TERM
            deadline = time.monotonic() + self.spec.stop_grace_s
            # Polled, not awaited on a child watcher: those belong to one event loop.
            while popen.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
        self.kill()
        return popen.returncode

    def kill(self) -> None:
        """KILL what is left of the process group, and reap. Safe to call at any time."""
        popen = self._popen
        if popen is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)  # helpers that it started are in its group
        popen.wait()
        _running.discard(self)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, for drills (SIGSTOP, SIGCONT, SIGKILL)."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of its log, for messages."""
        try:
            with self.spec.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError as error:
            return f"(no log: {error.strerror})"
        return "\n".join(text.splitlines()[-lines:])

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def _launch(self) -> None:
        spec = self.spec
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        guarded = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *spec.argv]
        with spec.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                guarded,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(spec.env),
                cwd=spec.cwd,
                start_new_session=True,
            )
        _running.add(self)

    async def _wait_ready(self) -> None:
        spec = self.spec
        deadline = time.monotonic() + spec.ready_timeout_s
        last = "it answered that it is not ready"
        while True:
            if not self.running:
                raise ProcessError(self._explain(f"ended with status {self.returncode} at start"))
            left = deadline - time.monotonic()
            if left <= 0:
                problem = f"was not ready within {spec.ready_timeout_s:g} s ({last})"
                raise ProcessError(self._explain(problem))
            try:
                async with asyncio.timeout(left):
                    if await spec.ready():
                        return
            except Exception as error:  # noqa: BLE001 - any failure of the check means: not yet
                last = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            await asyncio.sleep(_POLL_S)

    def _explain(self, problem: str) -> str:
        return f"{self.spec.name} {problem}; last lines of {self.spec.log_path}:\n{self.log_tail()}"


_running: weakref.WeakSet[ManagedProcess] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    for process in list(_running):
        process.kill()
