"""Reads that wait while a round trip is in flight share the next one: no timer, no added wait."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.features.keys import Fields

# One hash's fields in the order asked for; an error instead where Redis refused that key alone.
Row = list[bytes | None] | Exception


@dataclass(frozen=True, slots=True)
class Read:
    """The same fields of several hashes."""

    fields: Fields
    keys: Sequence[bytes]


# One list of rows for each read, in order.
Fetch = Callable[[Sequence[Read]], Awaitable[list[list[Row]]]]


@dataclass(slots=True)
class _Waiting:
    reads: Sequence[Read]
    size: int
    answer: asyncio.Future[list[list[Row]]]


class Coalescer:
    """Puts the reads of many callers into few round trips.

    A round trip belongs to no caller: it runs in an empty context, without a trace, a deadline
    or an identity of whoever happened to come first. It is bounded by the fetch's own time-out;
    each caller bounds its own wait, and a caller that gives up takes nobody else down.

    Args:
        fetch: One round trip. It must not be cancelled by callers.
        max_keys: A round trip takes callers until it has this many keys.
        max_flights: Round trips at the same time.
    """

    def __init__(self, fetch: Fetch, *, max_keys: int, max_flights: int = 1) -> None:
        self._fetch = fetch
        self._max_keys = max_keys
        self._max_flights = max_flights
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flying = 0

    async def read(self, reads: Sequence[Read]) -> list[list[Row]]:
        """Return the rows of each read, from a round trip shared with others.

        Raises:
            Exception: what the fetch raised; everyone in that round trip gets the same.
        """
        answer: asyncio.Future[list[list[Row]]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(reads, sum(len(r.keys) for r in reads), answer))
        if self._flying < self._max_flights:
            self._flying += 1
            task = asyncio.create_task(self._fly(), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _fly(self) -> None:
        try:
            await self._fly_on()
        finally:
            # Here, not in a callback of the task: that comes after the callers that were
            # answered run again, and their next read would wait for a flight that is over.
            self._flying -= 1

    async def _fly_on(self) -> None:
        while boarded := self._board():
            try:
                rows = await self._fetch([read for item in boarded for read in item.reads])
            except BaseException as error:
                for item in boarded:
                    if not item.answer.done():
                        item.answer.set_exception(_copy(error))
                if not isinstance(error, Exception):
                    raise
                continue
            start = 0
            for item in boarded:
                stop = start + len(item.reads)
                if not item.answer.done():
                    item.answer.set_result(rows[start:stop])
                start = stop

    def _board(self) -> list[_Waiting]:
        boarded: list[_Waiting] = []
        keys = 0
        while self._waiting and (not boarded or keys + self._waiting[0].size <= self._max_keys):
            item = self._waiting.popleft()
            if not item.answer.done():  # else its caller has given up
                boarded.append(item)
                keys += item.size
        return boarded

    async def close(self) -> None:
        """Stop; whoever still waits gets a CancelledError."""
        flights = list(self._tasks)
        for task in flights:
            task.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        for item in self._waiting:
            item.answer.cancel()
        self._waiting.clear()


def _copy(error: BaseException) -> BaseException:
    """Return an error for one caller: a shared object would gather everyone's tracebacks."""
    if isinstance(error, asyncio.CancelledError):
        return ConnectionError("the feature service is stopping")
    try:
        return type(error)(*error.args).with_traceback(None)
    except Exception:  # noqa: BLE001 - an unusual constructor: the shared object will do
        return error
