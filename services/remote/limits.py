"""How much may be asked of a model in a minute: in all, and by one caller; over all replicas.

Token buckets in state Redis, one script for all buckets of an item: either every one of them has
room, or nothing is taken. Tokens are estimated before and corrected after; a bucket may go below
zero then, which the next ones wait for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import redis.asyncio
import redis.exceptions

from services.chassis.clock import Clock
from services.chassis.errors import ResourceExhaustedError
from services.remote import meters
from services.remote.catalog import Model, Provider

_MINUTE_S = 60.0
_LONGEST_WAIT_S = 60.0
# The store's clock counts, so that replicas agree. Keys live as long as a bucket takes to fill.
# KEYS: buckets. ARGV: for each its size (a minute's worth), and how much is taken; then 1 to take
# only if there is room, 0 to correct in any case. Returns {0} or {position, milliseconds to wait}.
_SCRIPT = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
local guarded = ARGV[#ARGV] == '1'
local levels = {}
for i, key in ipairs(KEYS) do
  local size, take = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local held = redis.call('HMGET', key, 'level', 'at')
  local level = size
  if held[1] then
    level = math.min(size, tonumber(held[1]) + (now - tonumber(held[2])) * size / 60)
  end
  if guarded and level < math.min(take, size) then
    return {i, math.ceil((math.min(take, size) - level) * 60000 / size)}
  end
  levels[i] = math.min(size, level - take)
end
for i, key in ipairs(KEYS) do
  redis.call('HSET', key, 'level', tostring(levels[i]), 'at', string.format('%.6f', now))
  redis.call('EXPIRE', key, 180)
end
return {0}
"""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A minute's worth of something, and how much of it an item takes.

    Attributes:
        key: Whose it is.
        size: How much there is in a minute.
        take: How much the item takes; the correction may be negative.
        tokens: Whether tokens are counted, not requests.
        caller: Whether it is one caller's.
    """

    key: str
    size: int
    take: float
    tokens: bool
    caller: bool


class Buckets(Protocol):
    """Where buckets are kept."""

    async def take(self, buckets: Sequence[Bucket], *, guarded: bool) -> tuple[int, float] | None:
        """Take from all of them, or, if guarded and one has no room, from none.

        Returns:
            None; or the position of a bucket without room, and the seconds until it has.
        """


class LocalBuckets:
    """Buckets of this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[str, tuple[float, float]] = {}

    async def take(self, buckets: Sequence[Bucket], *, guarded: bool) -> tuple[int, float] | None:
        """See `Buckets`."""
        now = self._clock.monotonic()
        levels = []
        for position, bucket in enumerate(buckets):
            level, at = self._held.get(bucket.key, (float(bucket.size), now))
            level = min(bucket.size, level + (now - at) * bucket.size / _MINUTE_S)
            wanted = min(bucket.take, bucket.size)
            if guarded and level < wanted:
                return position, (wanted - level) * _MINUTE_S / bucket.size
            levels.append(min(float(bucket.size), level - bucket.take))
        for bucket, level in zip(buckets, levels, strict=True):
            self._held[bucket.key] = (level, now)
        if len(self._held) > 100_000:  # callers come and go; a full bucket need not be kept
            self._held = {k: v for k, v in self._held.items() if now - v[1] < _MINUTE_S}
        return None


class RedisBuckets:
    """Buckets of all replicas; while the store is away, each replica's own.

    Args:
        client: The state store; its time-outs bound what a limit adds to a call.
        local: Serves while the store does not answer.
    """

    def __init__(self, client: redis.asyncio.Redis, local: LocalBuckets) -> None:
        self._script = client.register_script(_SCRIPT)
        self._local = local
        self._away = False

    async def take(self, buckets: Sequence[Bucket], *, guarded: bool) -> tuple[int, float] | None:
        """See `Buckets`."""
        arguments: list[str | float | int] = []
        for bucket in buckets:
            arguments += [bucket.size, bucket.take]
        try:
            found = await self._script(
                keys=[bucket.key for bucket in buckets], args=[*arguments, int(guarded)]
            )
        except (redis.exceptions.RedisError, OSError) as error:
            if not self._away:
                log.warning(
                    "limits are this replica's own: the state store is away",
                    extra={"error": type(error).__name__},
                )
            self._away = True
            meters.LIMITS_LOCAL.inc()
            return await self._local.take(buckets, guarded=guarded)
        self._away = False
        return None if found[0] == 0 else (int(found[0]) - 1, int(found[1]) / 1000)


class Limits:
    """Holds items to the limits of the catalog."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    async def acquire(
        self, provider: Provider, model: Model, caller: str, tokens: int
    ) -> Sequence[Bucket]:
        """Take one request and about so many tokens; return what was taken.

        Raises:
            ResourceExhaustedError: RATE_LIMITED, with what is limited and how long to wait.
        """
        buckets = _buckets(provider, model, caller, tokens)
        if not buckets:
            return buckets
        full = await self._buckets.take(buckets, guarded=True)
        if full is None:
            return buckets
        bucket, wait = buckets[full[0]], min(full[1], _LONGEST_WAIT_S)
        whose = "this caller" if bucket.caller else "all callers"
        what = "tokens" if bucket.tokens else "requests"
        raise ResourceExhaustedError(
            "RATE_LIMITED",
            f"vendor {provider.name}: no more {what} for {whose} in this minute",
            metadata={
                "provider": provider.name,
                "model": model.name,
                "limit": f"{what}_per_minute",
                "scope": "caller" if bucket.caller else "model",
            },
            retry_after=wait,
        )

    async def settle(self, taken: Sequence[Bucket], tokens: int | None) -> None:
        """Correct the tokens that were taken to those that were used; None: not known."""
        if tokens is None:
            return
        buckets = [
            Bucket(b.key, b.size, tokens - b.take, tokens=True, caller=b.caller)
            for b in taken
            if b.tokens and tokens != b.take
        ]
        if buckets:
            await self._buckets.take(buckets, guarded=False)


def _buckets(provider: Provider, model: Model, caller: str, tokens: int) -> list[Bucket]:
    # The braces keep all buckets of a model on one node of a cluster: one script, one node.
    prefix = f"twinpath:limit:{{{provider.name}/{model.name}}}"
    found = []
    for share, whose in ((model.limits, ""), (model.limits.per_caller, caller)):
        own = share is model.limits.per_caller
        if share.requests_per_minute is not None:
            key = f"{prefix}:requests:{whose}"
            found.append(Bucket(key, share.requests_per_minute, 1, tokens=False, caller=own))
        if share.tokens_per_minute is not None:
            key = f"{prefix}:tokens:{whose}"
            found.append(Bucket(key, share.tokens_per_minute, tokens, tokens=True, caller=own))
    return found
