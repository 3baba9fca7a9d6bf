"""Where limits and used grants are kept: for all replicas in state Redis, else in this process.

A claim is what one item takes: from every bucket, and its grant for good. All of it is taken, or
nothing is, in one round trip; of the buckets perhaps from what this replica took ahead (leases.py).

A bucket holds a minute's worth and fills evenly. Of a bucket that callers share, the upper half
goes to whoever comes; the lower half only within a caller's weighted share of the whole, counted
over those that came within the last minute. So one caller alone may take everything, and whoever
joins finds room.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Protocol

import redis.asyncio
import redis.exceptions
from hiredis import pack_command

from services.chassis.clock import Clock
from services.chassis.redis_lane import Lane
from services.remote import meters
from services.remote.leases import Leases
from services.remote.limit_claims import Bucket, Claim, Refusal

_MINUTE_S = 60.0
_AWAY_S = 0.5
_GRANT = "twinpath:grant:"
_USED = -1
_OF_SHARE = 1000
# The store's clock counts, so that replicas agree. Keys live as long as a bucket takes to fill.
# ARGV: 1 to take only if there is room (0 to correct in any case), how many buckets, milliseconds
# for which the grant is remembered (0: there is none), the caller; for each bucket: size, take,
# how much more for a lease, the caller's weight (0: nobody shares it).
# KEYS: the grant, if any; for each bucket its own and, if shared, the caller's share of it, those
# who share it, and those of them whose weight is not 1.
# Returns what `_refusal` reads: a code, and milliseconds to wait; then 1 if it gave the lease.
_SCRIPT = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
local at_key, at_arg = 0, 4
local function key() at_key = at_key + 1; return KEYS[at_key] end
local function arg() at_arg = at_arg + 1; return tonumber(ARGV[at_arg]) end
local guarded, remember, who = ARGV[1] == '1', tonumber(ARGV[3]), ARGV[4]
local function level(name, size)
  local found = redis.call('HMGET', name, 'level', 'at')
  if not found[1] then return size end
  return math.min(size, tonumber(found[1]) + (now - tonumber(found[2])) * size / 60)
end
local totals = {}
local function all_weights(callers, heavy, weight)
  if totals[callers] then return totals[callers] end
  for _, name in ipairs({callers, heavy}) do
    redis.call('ZREMRANGEBYSCORE', name, '-inf', now - 60)
  end
  if weight == 1 then
    redis.call('ZADD', callers, now, who)
    redis.call('EXPIRE', callers, 120)
  else
    redis.call('ZADD', heavy, now, string.format('%.17g', weight) .. '|' .. who)
    redis.call('EXPIRE', heavy, 120)
  end
  local total = redis.call('ZCARD', callers)
  for _, member in ipairs(redis.call('ZRANGE', heavy, 0, -1)) do
    total = total + tonumber(string.match(member, '^[^|]*'))
  end
  totals[callers] = total
  return total
end
local grant = remember > 0 and key() or nil
local buckets, lease = {}, guarded
for i = 1, tonumber(ARGV[2]) do
  local size, take, more, weight = arg(), arg(), arg(), arg()
  local b = {name = key(), size = size, take = take, more = more, weight = weight}
  if weight > 0 then b.share, b.callers, b.heavy = key(), key(), key() end
  b.left = level(b.name, size)
  lease = lease and b.left - take - more >= size / 2
  buckets[i] = b
end
local code, wait, writes = 0, 0, {}
for i, b in ipairs(buckets) do
  local size, take, left, weight = b.size, b.take, b.left, b.weight
  if guarded and code == 0 and left < math.min(take, size) then
    code, wait = i, math.ceil((math.min(take, size) - left) * 60000 / size)
  end
  if lease then take = take + b.more end
  writes[#writes + 1] = {b.name, math.min(size, left - take)}
  if weight > 0 then
    local total = all_weights(b.callers, b.heavy, weight)
    local part = size * weight / total
    local mine = level(b.share, part)
    local contended = total > weight and left - take < size / 2
    if guarded and code == 0 and contended and mine < math.min(take, part) then
      code, wait = 1000 + i, math.ceil((math.min(take, part) - mine) * 60000 / part)
    end
    local after = mine - take
    if not contended then after = math.max(0, after) end
    writes[#writes + 1] = {b.share, math.max(-part, math.min(part, after))}
  end
end
if code == 0 and grant and not redis.call('SET', grant, 1, 'NX', 'PX', remember) then
  code = -1
end
if code == 0 then
  for _, write in ipairs(writes) do
    redis.call('HSET', write[1], 'level', string.format('%.17g', write[2]),
      'at', string.format('%.6f', now))
    redis.call('EXPIRE', write[1], 180)
  end
end
return {code, wait, lease and code == 0 and 1 or 0}
"""
_SHA = hashlib.sha1(_SCRIPT.encode()).hexdigest()  # noqa: S324 - how Redis names scripts
log = logging.getLogger(__name__)


class Store(Protocol):
    """Where buckets and used grants are kept."""

    async def take(self, claim: Claim, left_s: float) -> Refusal | None:
        """Take all of a claim, or nothing. A grant's use may be known to one replica only.

        Raises:
            ServiceError: There was no time to ask (`left_s` seconds).
        """


class LocalStore:
    """Buckets of this process. Grants are not its business: see `grants.UsedGrants`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[str, tuple[float, float]] = {}
        self._sharers: dict[str, dict[str, tuple[float, float]]] = {}

    async def take(self, claim: Claim, left_s: float) -> Refusal | None:
        """See `Store`."""
        del left_s
        now = self._clock.monotonic()
        writes: dict[str, float] = {}
        # Who is refused counts among the sharers too, and gets its share from then on.
        totals = [self._weights(bucket, now) if bucket.weight else 0.0 for bucket in claim.buckets]
        for bucket, take, total in zip(claim.buckets, claim.takes, totals, strict=True):
            left = self._level(bucket.key, bucket.size, now)
            wanted = min(take, bucket.size)
            if claim.guarded and left < wanted:
                return Refusal(bucket, (wanted - left) * _MINUTE_S / bucket.size)
            writes[bucket.key] = min(float(bucket.size), left - take)
            if not bucket.weight:
                continue
            part = bucket.size * bucket.weight / total
            mine = self._level(bucket.share, part, now)
            wanted = min(take, part)
            contended = total > bucket.weight and left - take < bucket.size / 2
            if claim.guarded and contended and mine < wanted:
                return Refusal(bucket, (wanted - mine) * _MINUTE_S / part, share=True)
            after = mine - take
            writes[bucket.share] = max(-part, min(part, after if contended else max(0.0, after)))
        self._held.update((key, (level, now)) for key, level in writes.items())
        if len(self._held) > 100_000:  # callers come and go; a full bucket need not be kept
            self._held = {k: v for k, v in self._held.items() if now - v[1] < _MINUTE_S}
        return None

    def _level(self, key: str, size: float, now: float) -> float:
        level, at = self._held.get(key, (size, now))
        return min(size, level + (now - at) * size / _MINUTE_S)

    def _weights(self, bucket: Bucket, now: float) -> float:
        """Return the weights of all that came within a minute, this caller included."""
        sharers = self._sharers.setdefault(bucket.sharers, {})
        sharers[bucket.who] = (bucket.weight, now)
        gone = [who for who, (_, at) in sharers.items() if now - at > _MINUTE_S]
        for who in gone:
            del sharers[who]
        return sum(weight for weight, _ in sharers.values())


class RedisStore:
    """Buckets and used grants of all replicas; while the store is away, each replica's own.

    A claim is one script, and many are on their way at a time. None is sent twice: one whose
    answer was lost may have been taken.

    Args:
        client: The state store.
        local: Serves while the store does not answer.
        clock: Its monotonic clock tells when to try again.
        timeout_s: Seconds that the store may add to a call.
    """

    def __init__(
        self, client: redis.asyncio.Redis, local: Store, clock: Clock, timeout_s: float = 0.1
    ) -> None:
        self._lane = Lane(client.connection_pool, timeout_s)
        self._local = local
        self._clock = clock
        self._leases = Leases()
        self._again_at = float("-inf")

    async def take(self, claim: Claim, left_s: float) -> Refusal | None:
        """See `Store`."""
        now = self._clock.monotonic()
        if now >= self._again_at:
            try:
                refusal = await self._take(claim, now)
            except (redis.exceptions.RedisError, OSError) as error:
                if self._again_at == float("-inf"):
                    log.warning(
                        "limits and used grants are this replica's own: the state store is away",
                        extra={"error": type(error).__name__},
                    )
                self._again_at = self._clock.monotonic() + _AWAY_S
            else:
                self._again_at = float("-inf")
                return refusal
        meters.LIMITS_LOCAL.inc()
        return await self._local.take(claim, left_s)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._lane.close()

    async def _take(self, claim: Claim, now: float) -> Refusal | None:
        if not claim.buckets:
            return await self._use(claim)
        if not claim.guarded:
            return _refusal(claim, *(await self._ask(claim, ()))[:2])
        if self._leases.spend(claim, now):
            refusal = await self._use(claim) if claim.grant else None
            if refusal is not None:
                self._leases.put_back(claim)
            return refusal
        more, given = self._leases.ask(claim, now), False
        try:
            code, wait, given = await self._ask(claim, more)
        finally:
            if more:
                self._leases.came(claim, more if given else (), now)
        return _refusal(claim, code, wait)

    async def _use(self, claim: Claim) -> Refusal | None:
        """Use a grant up, where there is room in hand or no limit."""
        key = f"{_GRANT}{claim.grant}"
        command = _packed("SET", key, 1, "NX", "PX", _remember_ms(claim))
        (reply,) = await self._lane.ask(command, 1, again=False)
        if isinstance(reply, Exception):
            raise reply
        return Refusal(None) if reply is None else None

    async def _ask(self, claim: Claim, more: Sequence[float]) -> tuple[int, int, bool]:
        command = _packed("EVALSHA", _SHA, *_written(claim, more))
        (reply,) = await self._lane.ask(command, 1, again=False)
        if isinstance(reply, redis.exceptions.NoScriptError):  # nothing was done
            load = _packed("SCRIPT", "LOAD", _SCRIPT)
            _, reply = await self._lane.ask(load + command, 2, again=False)
        if isinstance(reply, Exception):
            raise reply
        code, wait_ms, given = reply
        return int(code), int(wait_ms), bool(given)


def _remember_ms(claim: Claim) -> int:
    return max(1, int(claim.remember_s * 1000))


def _written(claim: Claim, more: Sequence[float]) -> list[str | float | int]:
    """Return the script's number of keys, keys and arguments."""
    keys = [f"{_GRANT}{claim.grant}"] if claim.grant else []
    remember_ms = _remember_ms(claim) if claim.grant else 0
    arguments: list[str | float | int] = []
    who = ""
    ahead = more or [0.0] * len(claim.takes)
    for bucket, take, further in zip(claim.buckets, claim.takes, ahead, strict=True):
        arguments += [bucket.size, take, further, bucket.weight]
        keys.append(bucket.key)
        if bucket.weight:
            who = bucket.who
            keys += [bucket.share, bucket.sharers, f"{bucket.sharers}:heavy"]
    head: list[str | float | int] = [int(claim.guarded), len(claim.buckets), remember_ms, who]
    return [len(keys), *keys, *head, *arguments]


def _packed(*command: str | float) -> bytes:
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says one element
    return packed


def _refusal(claim: Claim, code: int, wait_ms: int) -> Refusal | None:
    if code == 0:
        return None
    if code == _USED:
        return Refusal(None)
    of_share = code > _OF_SHARE
    bucket = claim.buckets[code - (_OF_SHARE if of_share else 0) - 1]
    return Refusal(bucket, wait_ms / 1000, share=of_share)
