"""One suite for both clients: `Either` makes the one with threads look like the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.unit.client.fake_router import FakeRouter, serving
from twinpath.client import AsyncClient, Client, RetryPolicy

QUICK = RetryPolicy(attempts=3, base_s=0.001, max_s=0.002)


class Either:
    """A client of one kind behind asynchronous methods."""

    def __init__(self, kind: str, target: str, **settings: Any) -> None:
        settings.setdefault("retries", QUICK)
        self.kind = kind
        self.client: Any = (Client if kind == "sync" else AsyncClient)(target, **settings)

    async def _call(self, method: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if self.kind == "aio":
            return await method(*args, **more)
        return await asyncio.to_thread(method, *args, **more)

    async def infer(self, *args: Any, **more: Any) -> Any:
        """Client.infer."""
        return await self._call(self.client.infer, *args, **more)

    async def batch_infer(self, *args: Any, **more: Any) -> Any:
        """Client.batch_infer."""
        return await self._call(self.client.batch_infer, *args, **more)

    async def explain(self, *args: Any, **more: Any) -> Any:
        """Client.explain."""
        return await self._call(self.client.explain, *args, **more)

    async def read(self, stream: Any, texts: list[str]) -> None:
        """Read a stream to its end; texts that came stay in the list, also after an error."""
        if self.kind == "aio":
            async for chunk in stream:
                texts.append(chunk.text)  # noqa: PERF401 - kept also when it raises
            return

        def run() -> None:
            texts.extend(chunk.text for chunk in stream)

        await asyncio.to_thread(run)

    async def close(self) -> None:
        """Client.close."""
        await self._call(self.client.close)


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    """A router that answers what the test says."""
    return FakeRouter()


@pytest.fixture
async def address(router: FakeRouter) -> AsyncIterator[str]:
    """Where it serves."""
    async with serving(router) as at:
        yield at


@pytest.fixture(params=["sync", "aio"])
async def connect(
    request: pytest.FixtureRequest, address: str
) -> AsyncIterator[Callable[..., Either]]:
    """Make clients of either kind with settings of the test's own."""
    made: list[Either] = []

    def make(target: str = "", **settings: Any) -> Either:
        made.append(Either(request.param, target or address, **settings))
        return made[-1]

    yield make
    for client in made:
        await client.close()
