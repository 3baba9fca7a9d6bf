"""One connection to Redis for the hot path, without redis-py on it.

redis-py connects: it finds the master, speaks TLS, authenticates, picks the database. Then this
module takes the transport over. Commands go out packed, as many as there are, and replies come
back in their order. redis-py's own way costs a hundred microseconds for each round trip, this one
about ten.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import hiredis
import redis.asyncio as redis
from redis._parsers.base import BaseParser
from redis.exceptions import InvalidResponse


@dataclass(slots=True)
class _Asked:
    """Commands that were sent, and what came back so far."""

    count: int
    answer: asyncio.Future[list[Any]]
    timer: asyncio.TimerHandle
    replies: list[Any] = field(default_factory=list)


class _Wire(asyncio.Protocol):
    """A connection that was taken over. It ends with its first fault; a new one is made then."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self.connection = connection
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._why: Exception | None = None
        self._asked: deque[_Asked] = deque()
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error
        )
        self._transport = connection._writer.transport  # noqa: SLF001 - the take-over
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def ask(self, commands: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Send commands; the future gets their replies, or why there are none."""
        answer: asyncio.Future[list[Any]] = self._loop.create_future()
        timer = self._loop.call_later(self._timeout_s, self._late)
        self._asked.append(_Asked(count, answer, timer))
        self._transport.write(commands)
        return answer

    def _late(self) -> None:
        self._why = redis.TimeoutError("Redis did not answer in time")
        self.end()

    def end(self) -> None:
        """Close at once; whoever still waits is told."""
        self.lost = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take in replies."""
        try:
            self._reader.feed(data)
            while self._asked:
                asked = self._asked[0]
                while len(asked.replies) < asked.count:
                    reply = self._reader.gets()
                    if reply is False:  # not there yet; the protocol spoken here has no booleans
                        return
                    asked.replies.append(reply)
                self._asked.popleft()
                asked.timer.cancel()
                # One who has given up has cancelled the future; the replies are dropped.
                if not asked.answer.done():
                    asked.answer.set_result(asked.replies)
        except InvalidResponse as error:
            self._why = error
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self.lost = True
        for asked in self._asked:
            asked.timer.cancel()
            if not asked.answer.done():
                why = self._why or redis.ConnectionError(str(exc or "Redis closed the connection"))
                asked.answer.set_exception(why)
        self._asked.clear()
        self._before.connection_lost(exc)


class Lane:
    """Sends packed commands to Redis, over one connection.

    Args:
        pool: redis-py's connection pool, which makes the connection.
        timeout_s: Longest wait for a reply, in seconds.
    """

    def __init__(self, pool: Any, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._wire: _Wire | None = None
        self._opening: asyncio.Task[_Wire] | None = None

    async def ask(self, commands: bytes, count: int, *, again: bool = True) -> list[Any]:
        """Send commands; return their `count` replies, errors among them.

        Asks once more when a connection that was there has died meanwhile, unless `again` is
        false: what does more than read may have been done.

        Raises:
            RedisError, OSError: no connection, or no answer in time.
        """
        wire = self._wire
        if wire is not None and not wire.lost:
            try:
                return await wire.ask(commands, count)
            except redis.ConnectionError:
                if not again or not wire.lost:
                    raise
        return await (await self._open()).ask(commands, count)

    async def _open(self) -> _Wire:
        """Return a connection; all that need one at the same time get the same."""
        if self._wire is not None and not self._wire.lost:
            return self._wire
        if self._opening is None or self._opening.done():
            # It belongs to no caller: not its deadline, nor its trace.
            self._opening = asyncio.create_task(self._take(), context=contextvars.Context())
            self._opening.add_done_callback(_look)
        return await asyncio.shield(self._opening)

    async def _take(self) -> _Wire:
        await self._give_back()
        self._wire = _Wire(await self._pool.get_connection(), self._timeout_s)
        return self._wire

    async def _give_back(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.end()
            await wire.connection.disconnect(nowait=True)
            await self._pool.release(wire.connection)

    async def close(self) -> None:
        """Close the connection."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._give_back()


def _look(task: asyncio.Task[_Wire]) -> None:
    """Look at a task's error: everyone who waited for it may be gone."""
    if not task.cancelled():
        task.exception()
