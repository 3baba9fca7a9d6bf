"""A stand-in vendor on a free port, and a client that knows its token."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.standin.app import StandIn
from services.standin.settings import Settings

TOKEN = "stand-in-test-token"


@pytest.fixture
async def standin() -> AsyncIterator[StandIn]:
    """The stand-in with `echo` only."""
    async with StandIn(Settings(token=TOKEN, limited_token="limited-token")) as running:
        yield running


@pytest.fixture
async def vendor(standin: StandIn) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of its public side."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(standin.url, headers=headers) as session:
        yield session


@pytest.fixture
async def admin(standin: StandIn) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of its admin endpoint."""
    async with aiohttp.ClientSession(standin.admin_url) as session:
        yield session
