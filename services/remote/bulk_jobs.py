"""What is known of bulk jobs, in state Redis: ids, digests and sizes, never an input or an answer.

The vendor keeps the rest. So any replica can go on with a job, also after a restart.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import redis.asyncio
import redis.exceptions

from services.chassis.errors import FailedPreconditionError, UnavailableError

# As long as vendors keep the files.
_KEEP_S = 30 * 86_400
_LOCK_S = 130


@dataclass(slots=True)
class Sent:
    """One item of a job.

    Attributes:
        id: The item's.
        digest: SHA-256 of the body that was sent for it, in hex; empty: none was.
        size: Bytes of that body.
        refused: The item's serialized result, in hex, where the door refused it.
    """

    id: str
    digest: str = ""
    size: int = 0
    refused: str = ""


@dataclass(slots=True)
class Job:
    """One job.

    Attributes:
        id: As the caller chose it.
        provider: Whom it was sent to.
        model: Which model.
        version: Of the model, as the items named it.
        endpoint: Where each request would go by itself.
        renderer: Version of the code that wrote the requests.
        items: The items, in order.
        file: The vendor's id of the file of requests; empty: not there yet, or it needs none.
        asked: All is there that the batch is made from, and it may have been made.
        batch: The vendor's id of the batch; empty: there is none yet.
        created: When it was begun, in Unix seconds.
        failed: Why there will be none.
    """

    id: str
    provider: str
    model: str
    version: str
    endpoint: str = ""
    renderer: str = ""
    items: list[Sent] = field(default_factory=list)
    file: str = ""
    asked: bool = False
    batch: str = ""
    created: float = 0.0
    failed: str = ""


class Jobs:
    """Jobs in the state store.

    Args:
        client: The state store; None: there is none, and so no bulk.
    """

    def __init__(self, client: redis.asyncio.Redis | None) -> None:
        self._client = client

    async def create(self, job: Job) -> bool:
        """Write a new job; False if there is one with its id.

        Raises:
            ServiceError: BULK_UNAVAILABLE, STATE_UNAVAILABLE.
        """
        with _away():
            made = await self._redis().set(_key(job.id), _written(job), nx=True, ex=_KEEP_S)
        return bool(made)

    async def save(self, job: Job) -> None:
        """Write what has changed. Raises ServiceError as `create`."""
        with _away():
            await self._redis().set(_key(job.id), _written(job), ex=_KEEP_S)

    async def load(self, job_id: str) -> Job | None:
        """Return a job, or None. Raises ServiceError as `create`."""
        with _away():
            found = await self._redis().get(_key(job_id))
        if found is None:
            return None
        document = json.loads(found)
        items = [Sent(**item) for item in document.pop("items")]
        return Job(**document, items=items)

    async def delete(self, job_id: str) -> None:
        """Forget a job. Raises ServiceError as `create`."""
        with _away():
            await self._redis().delete(_key(job_id))

    @asynccontextmanager
    async def working(self, job_id: str) -> AsyncIterator[bool]:
        """Hold a job while its batch is made: False if somebody else does."""
        with _away():
            mine = bool(await self._redis().set(f"{_key(job_id)}:lock", 1, nx=True, ex=_LOCK_S))
        try:
            yield mine
        finally:
            if mine:
                with _away():
                    await self._redis().delete(f"{_key(job_id)}:lock")

    def _redis(self) -> redis.asyncio.Redis:
        if self._client is None:
            raise FailedPreconditionError(
                "BULK_UNAVAILABLE", "bulk jobs need a state store: set TWINPATH_STATE_URL"
            )
        return self._client


class _away:  # noqa: N801 - reads as a function
    """Says that the state store is away, in the mesh's words."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, redis.exceptions.RedisError | OSError):
            raise UnavailableError(
                "STATE_UNAVAILABLE", "the state store does not answer", retry_after=1.0
            ) from error


def _key(job_id: str) -> str:
    return f"twinpath:bulk:{job_id}"


def _written(job: Job) -> str:
    return json.dumps(dataclasses.asdict(job), separators=(",", ":"))
