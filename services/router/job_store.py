"""What is known of batch jobs, in state Redis: ids, states and costs, never an input or an answer.

Inputs and answers are in the audit log, encrypted for their data subjects; the vendor's side is
remote's to know. So any router can go on with a job, also after a restart.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import redis.asyncio
import redis.exceptions

from services.chassis.errors import UnavailableError

_KEEP_S = 30 * 86_400
_LOCK_S = 15.0  # so long a job waits for another router after the one that worked on it has died
_RENEW_S = 5.0
_OPEN = "twinpath:jobs:open"

_RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


class ItemState(enum.StrEnum):
    """What has become of an item."""

    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"


class JobState(enum.StrEnum):
    """How far a job is; CANCELLING is RUNNING with the wish to end it."""

    PREPARING = "preparing"
    RUNNING = "running"
    ENDED = "ended"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Item:
    """One item.

    Attributes:
        id: As the caller named it.
        decision: Its decision id; empty: it was refused before it had one.
        part: Which of the job's parts it belongs to; -1: none.
        state: What has become of it.
        status: A serialized google.rpc.Status in hex, where it has no decision.
        cost: A serialized Cost in hex; empty: nothing is known.
    """

    id: str
    decision: str = ""
    part: int = -1
    state: ItemState = ItemState.WAITING
    status: str = ""
    cost: str = ""


@dataclass(slots=True)
class Part:
    """Items that go to one candidate in one batch.

    Attributes:
        candidate: A serialized CandidateRef in hex.
        size: Bytes of its items' model inputs.
        tries: How often its batch was begun anew because one was cut off before anything was asked.
        sent: Remote has it.
        cancelled: Remote was told to end it.
        done: Every item has its result.
        forgotten: Nothing of it is left at the vendor, or nothing can be done about it.
        batch: The vendor's id of the batch; empty: none yet.
    """

    candidate: str
    size: int = 0
    tries: int = 0
    sent: bool = False
    cancelled: bool = False
    done: bool = False
    forgotten: bool = False
    batch: str = ""


@dataclass(slots=True)
class Job:
    """One job. Times in microseconds since 1970-01-01 UTC.

    Attributes:
        id: Its id.
        tenant: Whose.
        caller: Who submitted it.
        task: The task.
        digest: Keyed digest of what was submitted, in hex.
        created: When.
        until: How long answers are waited for.
        state: How far it is.
        ended: When it ended; 0: it has not.
        cancelling: It is to end.
        items: The items, in order.
        parts: What goes to whom.
    """

    id: str
    tenant: str
    caller: str
    task: str
    digest: str
    created: int
    until: int
    state: JobState = JobState.PREPARING
    ended: int = 0
    cancelling: bool = False
    items: list[Item] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def waiting(self, part: int) -> list[Item]:
        """Return the items of a part that have no result yet."""
        return [i for i in self.items if i.part == part and i.state is ItemState.WAITING]


class JobStore:
    """Jobs in state Redis. Every method raises UnavailableError while it is away."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._release = client.register_script(_RELEASE)

    async def load(self, job_id: str) -> Job | None:
        """Return a job, None if there is none."""
        with _away():
            found = await self._redis.get(_key(job_id))
            if found is None:
                return None
            wish = await self._redis.exists(_wish(job_id))
        job = _read(found)
        job.cancelling = bool(wish)
        return job

    async def create(self, job: Job) -> None:
        """Write a new job, or one that is prepared anew. Only for who works on it."""
        with _away():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(_key(job.id), _written(job), ex=_KEEP_S)
                pipe.delete(_wish(job.id))
                pipe.sadd(_OPEN, job.id)
                mine = _of(job.tenant, job.caller)
                pipe.zadd(mine, {job.id: job.created})
                pipe.zremrangebyscore(mine, "-inf", job.created - _KEEP_S * 1_000_000)
                pipe.expire(mine, _KEEP_S)
                await pipe.execute()

    async def save(self, job: Job) -> None:
        """Write what has changed; who looks after jobs lets go of one that has ended."""
        with _away():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(_key(job.id), _written(job), ex=_KEEP_S)
                if job.ended and all(part.forgotten for part in job.parts):
                    pipe.srem(_OPEN, job.id)
                await pipe.execute()

    async def forget(self, job_id: str) -> None:
        """Let go of a job that is not there any more."""
        with _away():
            await cast("Awaitable[int]", self._redis.srem(_OPEN, job_id))

    async def wish_end(self, job_id: str) -> None:
        """Note that a job is to end. It needs no turn: who works on the job will see it."""
        with _away():
            await self._redis.set(_wish(job_id), 1, ex=_KEEP_S)

    async def open(self) -> list[str]:
        """Return the ids of the jobs that have not ended."""
        with _away():
            names = await cast("Awaitable[set[Any]]", self._redis.smembers(_OPEN))
        return sorted(name.decode() for name in names)

    async def of(self, tenant: str, caller: str, before: int, most: int) -> list[Job]:
        """Return so many of a caller's jobs at most, created before a time; the newest first."""
        with _away():
            names = await self._redis.zrevrangebyscore(
                _of(tenant, caller), f"({before}" if before else "+inf", "-inf", 0, most
            )
        jobs = [await self.load(name.decode()) for name in names]
        return [job for job in jobs if job is not None]

    @asynccontextmanager
    async def working(self, job_id: str) -> AsyncIterator[bool]:
        """Be the only one who works on a job: False if somebody else does."""
        key, token = f"{_key(job_id)}:lock", secrets.token_hex(8)
        with _away():
            mine = bool(await self._redis.set(key, token, nx=True, px=int(_LOCK_S * 1000)))
        if not mine:
            yield False
            return
        renewing = asyncio.create_task(self._renew(key))
        try:
            yield True
        finally:
            renewing.cancel()
            with suppress(redis.exceptions.RedisError, OSError):  # it expires by itself
                await self._release(keys=[key], args=[token])

    async def _renew(self, key: str) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            with suppress(redis.exceptions.RedisError, OSError):
                await self._redis.pexpire(key, int(_LOCK_S * 1000))


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except (redis.exceptions.RedisError, OSError):
        raise UnavailableError(
            "STATE_STORE_UNAVAILABLE", "the state store is away; jobs have to wait", retry_after=1.0
        ) from None


def _key(job_id: str) -> str:
    return f"twinpath:job:{job_id}"


def _wish(job_id: str) -> str:
    return f"{_key(job_id)}:cancel"


def _of(tenant: str, caller: str) -> str:
    who = hashlib.sha256(f"{len(tenant)}:{tenant}{caller}".encode()).hexdigest()[:32]
    return f"twinpath:jobs:of:{who}"


def _written(job: Job) -> str:
    return json.dumps(dataclasses.asdict(job), separators=(",", ":"))


def _read(text: bytes) -> Job:
    document = json.loads(text)
    items = [Item(**{**item, "state": ItemState(item["state"])}) for item in document.pop("items")]
    parts = [Part(**part) for part in document.pop("parts")]
    document["state"] = JobState(document["state"])
    return Job(**document, items=items, parts=parts)
