"""What the router keeps in state Redis to be fast or fair, and can do without.

Each call has a few milliseconds. After a failure the store is left alone for a second, so that
an outage costs some requests those milliseconds and not every one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import redis.asyncio
import redis.exceptions

from services.chassis.clock import Clock

T = TypeVar("T")
_TIMEOUT_S = 0.05
_LEAVE_ALONE_S = 1.0
_FAILED = (redis.exceptions.RedisError, OSError, TimeoutError)

# A token bucket. KEYS: the bucket. ARGV: tokens a second, its size. Gives the seconds to wait for
# a token, as text; 0: taken. The store's own clock counts, so that routers agree.
_TAKE = """
local now = redis.call('time')
local at = tonumber(now[1]) + tonumber(now[2]) / 1e6
local rate, size = tonumber(ARGV[1]), tonumber(ARGV[2])
local kept = redis.call('hmget', KEYS[1], 'tokens', 'at')
local tokens = math.min(size, (tonumber(kept[1]) or size)
  + math.max(0, at - (tonumber(kept[2]) or at)) * rate)
local wait = 0
if tokens >= 1 then tokens = tokens - 1 else wait = (1 - tokens) / rate end
redis.call('hset', KEYS[1], 'tokens', tostring(tokens), 'at', string.format('%.6f', at))
redis.call('pexpire', KEYS[1], math.ceil(size / rate * 1000) + 1000)
return string.format('%.6f', wait)
"""


class StateStore:
    """State Redis for answers and token buckets: cache.Store and quotas.Buckets."""

    def __init__(self, client: redis.asyncio.Redis, clock: Clock) -> None:
        self._redis = client
        self._clock = clock
        self._away_until = 0.0
        self._take = client.register_script(_TAKE)

    async def get(self, name: str) -> bytes | None:
        """See cache.Store."""
        return cast("bytes | None", await self._try(lambda: self._redis.get(name)))

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """See cache.Store."""
        await self._try(lambda: self._redis.set(name, value, px=max(1, int(ttl_s * 1000))))

    async def take(self, name: str, per_s: float, size: float) -> float | None:
        """See quotas.Buckets."""
        waited = await self._try(lambda: self._take(keys=[name], args=[per_s, size]))
        return None if waited is None else float(waited)

    async def _try(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if self._clock.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await call()
        except _FAILED:
            self._away_until = self._clock.monotonic() + _LEAVE_ALONE_S
            return None
