"""What a person decided about paths: kept in state Redis, seen by every router, recorded.

An override only takes candidates away. While the state store is away the last known word holds,
and new words are refused.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable
from typing import Any, cast

import redis.asyncio
import redis.exceptions

from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.errors import UnavailableError
from services.router.board import Board
from services.router.ports import Audit
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2

log = logging.getLogger(__name__)

_KEY = "twinpath:drained_paths"
PATH_NAMES = {context_pb2.PATH_LOCAL: "local", context_pb2.PATH_REMOTE: "remote"}


class Overrides:
    """Drains and restores paths."""

    def __init__(
        self, client: redis.asyncio.Redis, audit: Audit, board: Board, clock: Clock
    ) -> None:
        self._redis = client
        self._audit = audit
        self._board = board
        self._clock = clock

    async def refresh(self) -> None:
        """Read what holds. The last known word stays when the store is away."""
        try:
            names = await cast("Awaitable[set[Any]]", self._redis.smembers(_KEY))
        except (redis.exceptions.RedisError, OSError):
            return
        found = frozenset(n.decode() if isinstance(n, bytes) else str(n) for n in names)
        if found != self._board.drained:
            log.info("drained paths changed", extra={"drained": sorted(found)})
        self._board.drained = found

    async def watch(self, interval_s: float) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(interval_s)

    async def override(
        self, path: context_pb2.Path, reason: str, call: Call, *, drained: bool
    ) -> int:
        """Drain or restore a path; return the record's place in the log.

        The record comes first: an override that is not recorded does not happen.

        Raises:
            UnavailableError: the log or the state store is away.
        """
        name = PATH_NAMES[path]
        entry = audit_pb2.Entry(
            context=context_pb2.ItemContext(id=uuid.uuid4().hex),
            record=record_pb2.Record(
                kind=record_pb2.RECORD_KIND_OVERRIDE,
                decision_id=f"override-{uuid.uuid4().hex}",
                caller=context_pb2.Caller(
                    tenant=call.identity.tenant, identity=call.identity.subject
                ),
                event_time_unix_us=self._clock.unix_us(),
                event=record_pb2.AdminEvent(
                    action="drain_path" if drained else "restore_path",
                    actor=call.identity.subject,
                    target=name,
                    reason=reason,
                ),
            ),
        )
        result = await self._audit.append(entry)
        try:
            if drained:
                await cast("Awaitable[int]", self._redis.sadd(_KEY, name))
            else:
                await cast("Awaitable[int]", self._redis.srem(_KEY, name))
        except (redis.exceptions.RedisError, OSError):
            raise UnavailableError(
                "STATE_STORE_UNAVAILABLE", "the state store is away; nothing was changed"
            ) from None
        await self.refresh()
        return result.leaf_index
