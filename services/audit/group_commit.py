"""Group commit: what arrives while a sync is in flight goes out together as the next batch.

No timer: a lone record pays one sync, and under load the batch grows by itself. A waiter hears
nothing before its records are durable, and after a sync of unknown outcome nobody ever hears a
success again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from services.audit.failures import JournalError, JournalFailedError, JournalFullError
from services.audit.merkle import leaf_hash


class QueueFullError(Exception):
    """More is waiting to become durable than memory is meant to hold. Try again later."""


class Log(Protocol):
    """What group commit writes to."""

    def append(self, leaves: Sequence[bytes], hashes: bytes, notes: Sequence[Any]) -> int:
        """Write a batch durably, return its first index. Called from one thread."""


@dataclass(slots=True)
class _Waiting:
    leaves: Sequence[bytes]
    hashes: list[bytes]
    note: Any
    size: int
    done: asyncio.Future[int]


CommitHook = Callable[[int, list[bytes], list[Any]], None]


class GroupCommit:
    """Turns concurrent appends into few syncs. Belongs to one event loop."""

    def __init__(
        self,
        log: Log,
        *,
        on_commit: CommitHook,
        on_fatal: Callable[[BaseException], None],
        max_batch: int = 256,
        max_waiting_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Wrap `log`.

        Args:
            log: written to from a thread of its own, one call at a time.
            on_commit: told (first index, leaf hashes, notes) of each durable batch, in order and
                on the event loop, before its waiters are; there is one note for each append.
            on_fatal: told once when durability is unknown; the process should exit.
            max_batch: records that go into one sync, unless a single append has more.
            max_waiting_bytes: bytes that may wait; past them, QueueFullError.
        """
        self._log = log
        self._on_commit = on_commit
        self._on_fatal = on_fatal
        self._max_batch = max_batch
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._fatal: JournalFailedError | None = None
        self._closed = False
        self._writing = False
        self._idle: asyncio.Future[None] | None = None
        # Nothing that runs here may inherit the call that happened to start it.
        self._context = contextvars.Context()
        self._loop = asyncio.get_running_loop()
        # A thread and a queue of our own: an executor makes two futures for each batch.
        self._batches: SimpleQueue[list[_Waiting] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether durability has become unknown."""
        return self._fatal is not None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are not durable yet."""
        return self._waiting_bytes

    async def append(self, leaves: Sequence[bytes]) -> int:
        """Return the first leaf's index once all the leaves are durable, one after the other.

        A caller that stops waiting doesn't take its records back.

        Raises:
            QueueFullError: too much is waiting.
            JournalFullError: the disk is full, and none of the leaves was kept.
            JournalFailedError: whether the leaves are durable is unknown; nothing will be again.
        """
        return await self.enqueue(leaves)

    def enqueue(
        self, leaves: Sequence[bytes], note: Any = None, *, extra_bytes: int = 0
    ) -> asyncio.Future[int]:
        """Queue the leaves at once, as `append` does, and return what it waits for.

        `note` goes to the log and comes back in `on_commit`; `extra_bytes` is what it holds.
        """
        if self._fatal is not None:
            raise self._fatal
        if self._closed:
            raise JournalFullError("the log is closing")
        size = sum(map(len, leaves)) + extra_bytes
        if self._waiting_bytes + size > self._max_waiting_bytes:
            raise QueueFullError(f"{self._waiting_bytes} bytes wait for the disk")
        done: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append(_Waiting(leaves, list(map(leaf_hash, leaves)), note, size, done))
        self._waiting_bytes += size
        if not self._writing:
            self._writing = True
            # Once around the loop: what has arrived by now comes along.
            self._loop.call_soon(self._soon, context=self._context)
        return done

    async def close(self) -> None:
        """Let what waits become durable, take nothing more, and stop the thread."""
        self._closed = True
        if self._writing:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)
        self._batches.put(None)
        self._thread.join()

    def _soon(self) -> None:
        self._loop.call_soon(self._next, context=self._context)

    def _next(self) -> None:
        """Hand the next batch to the thread, or rest."""
        if self._waiting:
            self._batches.put(self._take())
            return
        self._writing = False
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _serve(self) -> None:
        """Write batches until there is a None: the thread."""
        while (group := self._batches.get()) is not None:
            leaves = [leaf for waiting in group for leaf in waiting.leaves]
            hashes = [hashed for waiting in group for hashed in waiting.hashes]
            written: int | BaseException
            try:
                notes = [waiting.note for waiting in group]
                written = self._log.append(leaves, b"".join(hashes), notes)
            except BaseException as error:  # noqa: BLE001 - judged on the loop
                written = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(
                    self._ended, group, hashes, written, context=self._context
                )

    def _ended(
        self, group: list[_Waiting], hashes: list[bytes], written: int | BaseException
    ) -> None:
        """Tell what became of a batch, and go on with the next one."""
        self._waiting_bytes -= sum([waiting.size for waiting in group])
        if isinstance(written, JournalFullError):
            _tell(group, written)
        elif isinstance(written, BaseException):
            self._die(written, group)
        else:
            try:
                self._on_commit(written, hashes, [waiting.note for waiting in group])
            except BaseException as error:  # noqa: BLE001 - of whatever kind: trust is gone
                self._die(error, group)
            else:
                for waiting in group:
                    if not waiting.done.done():
                        waiting.done.set_result(written)
                    written += len(waiting.leaves)
        self._next()

    def _take(self) -> list[_Waiting]:
        group = [self._waiting.popleft()]
        count = len(group[0].leaves)
        while self._waiting and count + len(self._waiting[0].leaves) <= self._max_batch:
            group.append(self._waiting.popleft())
            count += len(group[-1].leaves)
        return group

    def _die(self, error: BaseException, group: list[_Waiting]) -> None:
        """Fail all who wait, now and for good."""
        self._fatal = (
            error
            if isinstance(error, JournalFailedError)
            else JournalFailedError(f"the log can't be trusted any more: {error!r}")
        )
        _tell([*group, *self._waiting], self._fatal)
        self._waiting.clear()
        self._on_fatal(error)


def _tell(group: list[_Waiting], error: JournalError) -> None:
    for waiting in group:
        if not waiting.done.done():
            waiting.done.set_exception(error)
            waiting.done.exception()  # seen: a waiter that went away is no news
