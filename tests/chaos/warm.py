"""A service that starts again within a moment: `python -m tests.chaos.warm services.audit`.

Starting Python and importing gRPC takes longer than everything that a thousand kills are about. So
this process imports the service once, and forks for each start; what is forked runs the service's
own `__main__`, and is a process like any other: killing it leaves what a kill leaves.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]


class Warm:
    """A service to start and to kill, again and again."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        """Take the module's name and its whole environment."""
        self._module = module
        self._environment = dict(environment)
        self._pid = 0

    async def __aenter__(self) -> Self:
        """Import the service; it isn't started yet."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.chaos.warm", self._module),
            env=self._environment,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the service, if it runs, and the process that forks it."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            await self._said()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def start(self) -> None:
        """Start the service."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"start\n")
        self._pid = await self._said()

    async def kill(self) -> None:
        """Kill it with SIGKILL, and return when it is gone.

        Raises:
            AssertionError: it had ended by itself.
        """
        os.kill(self._pid, signal.SIGKILL)
        self._pid = 0
        status = await self._said()
        assert status == signal.SIGKILL, f"{self._module} had ended by itself: {status}"

    async def _said(self) -> int:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"{self._module} can't be started"
        return int(line)


def main() -> None:
    """Fork for each line that comes in; say the child's number, then how it ended."""
    module = sys.argv[1]
    importlib.import_module(f"{module}.__main__")
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            sys.argv[1:] = []
            sys.modules.pop(f"{module}.__main__")
            runpy.run_module(module, run_name="__main__")
            os._exit(0)
        print(child, flush=True)  # noqa: T201
        print(os.waitpid(child, 0)[1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
