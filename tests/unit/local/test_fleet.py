"""Pings of Triton's replicas: silence is noted, whoever runs out of patience first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.chassis.clock import SystemClock
from services.local.fleet import Fleet
from services.local.replicas import STRIKES, Balancer, Replica


class Hanging:
    """A server that takes connections and says nothing."""

    shares = True

    def __init__(self) -> None:
        self.pinged = asyncio.Event()
        self.dropped = 0

    async def live(self, _: float) -> bool:
        """Never answer."""
        self.pinged.set()
        await asyncio.Event().wait()
        return True

    def drop(self) -> None:
        """Count."""
        self.dropped += 1


class Models:
    """Has described everything."""

    loaded = True

    async def refresh(self) -> None:
        """Know nothing new."""


async def test_a_ping_that_is_given_up_counts_as_unanswered() -> None:
    """Also where the ping's own time would have ended a moment later; then its calls end."""
    server: Any = Hanging()
    replica = Replica("127.0.0.1:1", server)
    replica.answered()
    models: Any = Models()
    fleet = Fleet(Balancer([replica]), models, SystemClock(), ping_timeout_s=60, refresh_s=60)
    for strike in range(STRIKES):
        assert (replica.up, server.dropped) == (True, 0), strike
        server.pinged.clear()
        ping = asyncio.create_task(fleet.ping())
        await server.pinged.wait()
        ping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ping
    assert (replica.up, server.dropped) == (False, 1)
