"""Keeps the index up to date behind the log, and answers for what it doesn't hold yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Sequence

from services.audit.index import Index, Row
from services.audit.seen import Seen
from services.chassis.errors import UnavailableError

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_PAUSE_S = 0.5  # larger transactions: pages that many rows share, INTENTs that have ended


class LiveIndex:
    """The index as the event loop sees it: complete as of the last committed batch.

    Rows wait in memory until the indexing thread has taken them; the two questions that appends
    ask (is there an OUTCOME, where is a payload) look there first.
    """

    def __init__(
        self, index: Index, seen: Seen, outcome_kind: int, mark_at: Callable[[int], int]
    ) -> None:
        """Wrap an index that has caught up.

        Args:
            index: the index.
            seen: a filter of the decisions that have an OUTCOME.
            outcome_kind: the kind of which a decision has one at most.
            mark_at: gives a number that tells what the log looked like at a size.
        """
        self.index = index
        self._seen = seen
        self._outcome_kind = outcome_kind
        self._mark_at = mark_at
        self._rows: list[Row] = []
        self._size = self._committed = index.size
        self._outcomes: dict[str, int] = {}
        self._payload_size = self._stored = index.payloads
        self._payloads: dict[bytes, int] = {}  # those that are not in the index yet
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._flushed = asyncio.Condition()
        self._error: BaseException | None = None

    @property
    def waiting(self) -> int:
        """Rows that are not in the index yet, those that are being written among them."""
        return self._committed - self._size

    def committed(self, first: int, rows: Sequence[Row]) -> None:
        """Take the rows of records that have become durable."""
        for leaf, row in enumerate(rows, first):
            if row.kind == self._outcome_kind:
                self._outcomes.setdefault(row.decision, leaf)
                self._seen.add(row.decision)
        self._rows.extend(rows)
        self._committed = first + len(rows)
        self._wake.set()

    def stored(self, first: int, digests: Sequence[bytes]) -> None:
        """Take the digests of payloads that have become durable, from position `first` on.

        Positions before it that nobody told of hold payloads of records that a full disk refused.
        """
        for position, digest in enumerate(digests, first):
            self._payloads[digest] = position
        self._stored = first + len(digests)
        self._wake.set()

    def outcomes(self, decisions: Sequence[str]) -> dict[str, int]:
        """Return the OUTCOME's leaf for each of the decisions that has one."""
        maybe = [decision for decision in decisions if decision in self._seen]
        if not maybe:
            return {}
        found = {d: self._outcomes[d] for d in maybe if d in self._outcomes}
        rest = [d for d in maybe if d not in found]
        return found | self.index.of_kind(rest, self._outcome_kind) if rest else found

    def payload(self, digest: bytes) -> int | None:
        """Return where the payload with this digest stands."""
        position = self._payloads.get(digest)
        return self.index.payload(digest) if position is None else position

    async def settle(self) -> None:
        """Return once all that was committed before the call is in the index.

        Raises:
            UnavailableError: the index can't be written now; appends go on.
        """
        size, payloads = self._committed, self._stored
        async with self._flushed:
            while self._size < size or self._payload_size < payloads:
                if self._error is not None:
                    raise UnavailableError(
                        "INDEX_BEHIND", "the index can't be written now", retry_after=_RETRY_S
                    ) from self._error
                self._wake.set()
                self._urgent.set()
                await self._flushed.wait()

    async def run(self) -> None:
        """Write rows to the index until cancelled, again and again if it fails."""
        while True:
            await self._wake.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), _PAUSE_S)
            try:
                await self.flush()
            except sqlite3.Error as error:
                log.warning("the index can't be written", extra={"why": str(error)})
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Write what waits now. What can't be written stays."""
        self._wake.clear()
        self._urgent.clear()
        rows, self._rows = self._rows, []
        payloads = list(self._payloads.items())
        try:
            if rows or payloads:
                mark = self._mark_at(self._size + len(rows))
                await asyncio.to_thread(self.index.add, self._size, rows, mark, payloads)
                self._size += len(rows)
                for row in rows:
                    self._outcomes.pop(row.decision, None)
                rows = []
                for digest, position in payloads:
                    del self._payloads[digest]
                    self._payload_size = position + 1
            self._error = None
        except BaseException as error:
            self._error = error
            self._rows[:0] = rows
            self._wake.set()
            raise
        finally:
            async with self._flushed:
                self._flushed.notify_all()
