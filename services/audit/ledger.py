"""The ledger: takes entries, makes them durable, and lets the first OUTCOME win.

It belongs to one event loop. Between looking an OUTCOME up and claiming its decision id there is
no `await`, and that is the whole of the arbitration.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from services.audit import metrics, records
from services.audit.failures import JournalFailedError, JournalFullError
from services.audit.group_commit import GroupCommit, QueueFullError
from services.audit.live_index import LiveIndex
from services.audit.records import Sealed
from services.audit.settings import AuditSettings
from services.audit.storage import Storage
from services.chassis.clock import Clock
from services.chassis.errors import (
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
)
from twinpath.audit.v1 import audit_pb2

log = logging.getLogger(__name__)
_MAX_UNINDEXED = 200_000


class _PayloadFirst:
    """A batch's payloads are durable before its records are.

    So a record that a crash left behind without an acknowledgement, and that answers the caller's
    next try, always has the reply that it speaks of.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def append(self, leaves: Sequence[bytes], hashes: bytes, notes: Sequence[Any]) -> int:
        with metrics.SYNC_SECONDS.time():
            kept = [item for note in notes for item in note if item.payload]
            if kept:
                digests = b"".join([item.payload_digest for item in kept])
                self._storage.payloads.append([item.payload for item in kept], digests)
            return self._storage.journal.append(leaves, hashes)


class Appended(NamedTuple):
    """What became of an entry: a leaf, another's leaf that came first, or an error."""

    leaf: int = 0
    existing: bool = False
    error: ServiceError | None = None


class Ledger:
    """Appends to an open storage."""

    def __init__(self, storage: Storage, settings: AuditSettings, clock: Clock) -> None:
        """Wrap a storage; `run_index` must run beside it."""
        self.storage = storage
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.index = LiveIndex(storage.index, storage.seen, records.OUTCOME, storage.mark_at)
        self.names = records.Names(settings.cached_subjects)
        self._clock = clock
        self._max_record = settings.max_record_bytes
        self._last_time_us = storage.last_time_us
        self._claims: dict[str, asyncio.Future[int]] = {}
        self._commits = GroupCommit(
            _PayloadFirst(storage),
            on_commit=self._committed,
            on_fatal=self._fatal,
            max_waiting_bytes=settings.max_waiting_bytes,
        )
        metrics.SIZE.set_function(lambda: storage.tree.size)
        metrics.WAITING.set_function(lambda: self._commits.waiting_bytes)
        metrics.UNINDEXED.set_function(lambda: self.index.waiting)

    async def append(self, entries: Sequence[audit_pb2.Entry]) -> list[Appended]:
        """Make entries durable; one result for each, in order. Changes the entries."""
        results: list[Appended | None] = []
        names: list[str] = []
        missing: list[str] = []
        ending: list[str] = []
        keyring = self.storage.keys
        for entry in entries:
            refused, name = _refused(entry), self.names.of(entry)
            results.append(refused)
            names.append(name)
            if refused is None:
                if keyring.cached(name) is None:
                    missing.append(name)
                if entry.record.kind == records.OUTCOME:
                    ending.append(entry.record.decision_id)
        loaded = await asyncio.to_thread(keyring.ensure, missing) if missing else {}
        # From here on nothing else runs until the claims stand.
        taken: list[int] = []
        losers: list[int] = []
        sealed: list[Sealed] = []
        claimed: set[str] = set()
        outcomes = self.index.outcomes(ending)
        for at, entry in enumerate(entries):
            if results[at] is not None:
                continue
            decision = entry.record.decision_id
            outcome = entry.record.kind == records.OUTCOME
            if outcome and (
                decision in outcomes or decision in self._claims or decision in claimed
            ):
                losers.append(at)
                continue
            keys = keyring.cached(names[at]) or loaded.get(names[at])
            # Erased just now, or about to get another key.
            if (
                keys is None
                or keyring.is_destroyed(keys.pseudonym)
                or keyring.is_frozen(keys.pseudonym)
            ):
                error = UnavailableError("SUBJECT_BUSY", "the subject's keys are changing")
                results[at] = Appended(error=error)
                continue
            ready = records.seal(entry, keys, self._now_us())
            if len(ready.leaf) > self._max_record:
                results[at] = Appended(error=_too_large(self._max_record))
                continue
            taken.append(at)
            sealed.append(ready)
            if outcome:
                claimed.add(decision)
        for at, result in zip(taken, await self._commit(sealed, claimed), strict=True):
            results[at] = result
        for at in losers:
            results[at] = await self._existing(entries[at].record.decision_id)
        return [result or _left_over() for result in results]

    async def append_own(self, ready: Sequence[Sealed]) -> list[Appended]:
        """Append records that the service itself makes."""
        return await self._commit(ready, frozenset())

    def now_us(self) -> int:
        """Return the record time for a record that is appended before the next `await`."""
        return self._now_us()

    def clock_us(self) -> int:
        """Return the time, as record times count it."""
        return max(self._last_time_us, self._clock.unix_us())

    def is_claimed(self, decision: str) -> bool:
        """Tell whether an OUTCOME for the decision is on its way to the disk."""
        return decision in self._claims

    def fail(self, error: BaseException) -> None:
        """Stop for good: durability, or the log's word, is unknown."""
        self._fatal(error)

    async def run_index(self) -> None:
        """Keep the index up to date until cancelled."""
        await self.index.run()

    async def close(self) -> None:
        """Let what waits become durable, and take nothing more."""
        await self._commits.close()

    async def _commit(self, ready: Sequence[Sealed], claimed: AbstractSet[str]) -> list[Appended]:
        """Write sealed records and their payloads, claiming these decisions until it is done.

        Up to the first `await` it runs as one piece with its caller.
        """
        if not ready:
            return []
        if self.index.waiting > _MAX_UNINDEXED:
            behind = QueueFullError("the index is too far behind")
            return [Appended(error=_mapped(behind))] * len(ready)
        payload_bytes = sum(len(item.payload) for item in ready)
        try:
            done = self._commits.enqueue(
                [item.leaf for item in ready], ready, extra_bytes=payload_bytes
            )
        except (QueueFullError, JournalFullError, JournalFailedError) as error:
            return [Appended(error=_mapped(error))] * len(ready)
        for decision in claimed:
            self._claims[decision] = done
        if claimed:
            done.add_done_callback(lambda _: self._release(claimed))
        try:
            # A caller that goes away takes nothing back, and its claims stand until it is done.
            first = await (asyncio.shield(done) if claimed else done)
        except (JournalFullError, JournalFailedError) as error:
            return [Appended(error=_mapped(error))] * len(ready)
        return [Appended(leaf=first + at) for at in range(len(ready))]

    async def _existing(self, decision: str) -> Appended:
        """Return the OUTCOME that came first, once it is durable."""
        claim = self._claims.get(decision)
        if claim is not None:
            await asyncio.wait({claim})
        leaf = self.index.outcomes([decision]).get(decision)
        if leaf is not None:
            metrics.REPEATED.inc()
            return Appended(leaf=leaf, existing=True)
        error = claim.exception() if claim is not None else None
        if error is not None:
            return Appended(error=_mapped(error))
        return Appended(error=UnavailableError("OUTCOME_UNSETTLED", "the first append failed"))

    def _committed(self, first: int, hashes: list[bytes], notes: list[Sequence[Sealed]]) -> None:
        """Take a batch that is durable. The journal's thread rests until this returns."""
        self.storage.tree.extend(hashes)
        ready = [item for note in notes for item in note]
        digests = [item.payload_digest for item in ready if item.payload]
        if digests:
            self.index.stored(self.storage.payloads.size - len(digests), digests)
        rows = [item.row for item in ready]
        self.index.committed(first, rows)
        metrics.count_batch([row.kind for row in rows])

    def _release(self, claimed: AbstractSet[str]) -> None:
        for decision in claimed:
            self._claims.pop(decision, None)

    def _fatal(self, error: BaseException) -> None:
        log.critical("the log can't be trusted any more; stopping", extra={"why": str(error)})
        if not self.failed.done():
            self.failed.set_exception(error)

    def _now_us(self) -> int:
        """Return the record time: the clock's, but never before the last record's."""
        self._last_time_us = max(self._last_time_us, self._clock.unix_us())
        return self._last_time_us


def _refused(entry: audit_pb2.Entry) -> Appended | None:
    found = records.violations(entry)
    if not found:
        return None
    text = "; ".join(f"{field}: {what}" for field, what in found)
    return Appended(error=InvalidArgumentError("RECORD_INVALID", text, violations=found))


def _left_over() -> Appended:
    return Appended(error=InternalError("INTERNAL", "an entry was left over"))


def _too_large(limit: int) -> ServiceError:
    return ResourceExhaustedError("RECORD_TOO_LARGE", f"a record may have {limit} bytes")


def _mapped(error: BaseException) -> ServiceError:
    """Return the caller's view of what the log says."""
    if isinstance(error, QueueFullError):
        return ResourceExhaustedError("LOG_BUSY", "too much waits for the disk", retry_after=0.1)
    if isinstance(error, JournalFullError):
        return ResourceExhaustedError("LOG_DISK_FULL", "the log's disk is full", retry_after=5.0)
    if isinstance(error, JournalFailedError):
        return UnavailableError("LOG_FAILED", "whether the record is durable is unknown")
    return InternalError("INTERNAL", "internal error; the service's log has the details")
