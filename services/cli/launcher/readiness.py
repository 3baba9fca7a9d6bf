"""Ready means: the process itself says so, by the health check that everybody uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import aiohttp
import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

Check = Callable[[], Awaitable[bool]]
_CALL_S = 2.0
_PAUSE_S = 0.1


class NotServingError(Exception):
    """It answers, and says that it is not ready: a dependency does not answer it."""


def serving(address: str) -> Check:
    """Check that a gRPC server's health is SERVING.

    Args:
        address: host:port.
    """
    host, _, port = address.rpartition(":")

    async def check() -> bool:
        # A plain connection first: it is refused at once, where a channel would back off.
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        await writer.wait_closed()
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_S)
        if reply.status == health_pb2.HealthCheckResponse.SERVING:
            return True
        await asyncio.sleep(_PAUSE_S)
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        raise NotServingError(f"its health is {name}: a dependency does not answer it")

    return check


def together_ready(checks: Sequence[Check]) -> Check:
    """Check that all checks pass, one after the other."""

    async def check() -> bool:
        for each in checks:
            if not await each():
                return False
        return True

    return check


def answering(url: str) -> Check:
    """Check that an HTTP address answers 200."""

    async def check() -> bool:
        timeout = aiohttp.ClientTimeout(total=_CALL_S)
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as reply:
            return reply.status == 200

    return check


async def wait_for(check: Check, *, timeout_s: float, want: bool = True) -> bool:
    """Ask until the answer is `want`; a check that raises counts as no. False when time is up."""
    try:
        async with asyncio.timeout(timeout_s):
            while await _answer(check) is not want:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        return False
    return True


async def _answer(check: Check) -> bool:
    try:
        return await check()
    except (OSError, grpc.RpcError, aiohttp.ClientError, NotServingError):
        return False
