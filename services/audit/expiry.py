"""Removes payloads that are past their retention. Records, and the tree over them, stay.

So go payloads that no record names, whatever their age: payloads are written before their records,
and a full disk or a crash may come between.

A run goes in this order, so that a crash at any point leaves nothing that the next run does not
finish: find what is expired; record the run, durably; replace the payload keys of subjects who
have no younger payload, so that copies in backups can't be read with this key store either; write
the payload segments anew without what is expired. The last segment is still written to: it is
closed with the next payload, and the run after that removes what is expired in it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.audit import records
from services.audit.failures import CorruptLogError
from services.audit.index import Search
from services.audit.ledger import Ledger
from services.audit.merkle import HASH_SIZE
from services.audit.retention import Retention, read_retention
from services.audit.storage import Storage
from services.chassis.errors import FailedPreconditionError, UnavailableError
from services.chassis.files import FileError
from twinpath.audit.v1 import audit_pb2, record_pb2

log = logging.getLogger(__name__)
_PAGE = 1000
_FIRST_RUN_S = 60.0  # after a start there is more urgent work
_SERVICE = "service:audit"


@dataclass(slots=True)
class Expired:
    """What a look at the log found.

    Attributes:
        positions: of expired payloads in segments that can be written anew.
        unnamed: positions of payloads that no record names, in such segments, too.
        waiting: payloads to remove in the segment that is still written to.
        counts: expired payloads by task, the waiting ones left out.
        kept: payloads by task that are younger.
        done: by task, the leaf before which nothing is left to remove.
        subjects: pseudonyms whose payloads are all expired.
    """

    positions: list[int] = field(default_factory=list)
    unnamed: list[int] = field(default_factory=list)
    waiting: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    kept: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    subjects: set[str] = field(default_factory=set)


class Expiry:
    """Runs the retention, one run at a time."""

    def __init__(self, ledger: Ledger, path: Path | None) -> None:
        """Read the retention file; a broken one is an error at the start.

        Raises:
            FileError: it has mistakes.
        """
        self._ledger = ledger
        self._path = path
        self._running = asyncio.Lock()
        self.retention = read_retention(path)

    def gone(self, record: record_pb2.Record) -> bool:
        """Tell whether a record's payload is past its retention, removed yet or not."""
        return self.retention.expired(
            record.task, record.record_time_unix_us, self._ledger.clock_us()
        )

    async def run_regularly(self, every_s: float) -> None:
        """Run now and then until cancelled; what fails is tried again the next time."""
        await asyncio.sleep(min(every_s, _FIRST_RUN_S))
        while True:
            try:
                done = await self.run(_SERVICE, dry=False)
                if done.event_id:
                    log.info("removed expired payloads", extra={"event": done.event_id})
            except (FailedPreconditionError, UnavailableError) as error:
                log.error("the retention could not run", extra={"why": error.message})
            await asyncio.sleep(every_s)

    async def run(self, actor: str, *, dry: bool) -> audit_pb2.RetainResponse:
        """Remove what is expired, or only say what would be.

        Raises:
            FailedPreconditionError: the retention file has mistakes; nothing was removed.
            UnavailableError: the disk can't take the smaller segments; the next run goes on.
        """
        async with self._running:
            try:
                self.retention = await asyncio.to_thread(read_retention, self._path)
            except FileError as error:
                raise FailedPreconditionError("RETENTION_FILE_BROKEN", str(error)) from None
            ledger = self._ledger
            await ledger.index.settle()
            now = ledger.clock_us()
            found = await asyncio.to_thread(_look, ledger.storage, self.retention, now)
            answer = _answer(found, self.retention)
            if dry:
                return answer
            if found.waiting:
                ledger.storage.payloads.roll()
            if not found.positions and not found.unnamed:
                return answer
            answer.event_id, answer.leaf_index, answer.keys_replaced = await self._begin(
                actor, found, now
            )
            try:
                gone = found.positions + found.unnamed
                await asyncio.to_thread(ledger.storage.payloads.blank, gone)
            except CorruptLogError as error:
                ledger.fail(error)
                raise UnavailableError("LOG_FAILED", "the payloads are damaged") from error
            except OSError as error:
                raise UnavailableError("RETENTION_INCOMPLETE", str(error)) from error
            await asyncio.to_thread(ledger.storage.index.set_retained, found.done)
            return answer

    async def _begin(self, actor: str, found: Expired, now_us: int) -> tuple[str, int, int]:
        """Record the run and replace keys; return (event id, leaf, keys replaced).

        Nothing is sealed with one of these keys from here on until they are replaced, and what
        was sealed before is in the log by the time the run's own record is: so no payload can
        end up under a key that is gone.
        """
        ledger, keys = self._ledger, self._ledger.storage.keys
        with keys.frozen(found.subjects):
            event_id, leaf = await self._record(actor, found)
            await ledger.index.settle()
            renewed = await asyncio.to_thread(
                _renew, ledger.storage, self.retention, found.subjects, now_us
            )
        return event_id, leaf, renewed

    async def _record(self, actor: str, found: Expired) -> tuple[str, int]:
        """Record the run; it is durable when this returns."""
        now = self._ledger.now_us()
        details = {
            task: f"{count} payloads older than {self.retention.days(task)} days"
            for task, count in found.counts.items()
        }
        if found.unnamed:
            details["without a record"] = f"{len(found.unnamed)} payloads of appends that failed"
        event_id = f"retention-{uuid.uuid4().hex}"
        record = record_pb2.Record(
            kind=records.OVERRIDE,
            decision_id=event_id,
            event_time_unix_us=now,
            record_time_unix_us=now,
            event=record_pb2.AdminEvent(
                action="retention",
                actor=actor,
                target="payloads",
                reason="past the retention of their tasks",
                details=details,
            ),
        )
        (result,) = await self._ledger.append_own([records.finish(record)])
        if result.error is not None:
            raise result.error
        return event_id, result.leaf


def _look(storage: Storage, retention: Retention, now_us: int) -> Expired:
    """Find what is expired. Blocks; reads each record once in its life, more after a restore."""
    found = Expired()
    retained = storage.index.retained()
    for task in storage.index.tasks_with_payloads():
        cutoff = retention.cutoff_us(task, now_us)
        found.kept[task] = storage.index.count(Search(task=task, payload=True, start_us=cutoff))
        held_back = False
        for leaf in _with_payloads(storage, task, cutoff, retained.get(task, -1)):
            record = record_pb2.Record.FromString(storage.journal.read(leaf))
            position = storage.index.payload(record.payload_digest)
            if position is not None and not storage.payloads.is_blank(position):
                if storage.payloads.is_sealed(position):
                    found.positions.append(position)
                    found.counts[task] += 1
                else:
                    found.waiting += 1
                    held_back = True
            if record.subject:
                found.subjects.add(record.subject)
            if not held_back:
                found.done[task] = leaf
    for position in _unnamed(storage):
        if storage.payloads.is_sealed(position):
            found.unnamed.append(position)
        else:
            found.waiting += 1
    found.subjects = {
        name for name in found.subjects if _all_expired(storage, retention, name, now_us)
    }
    return found


def _unnamed(storage: Storage) -> list[int]:
    """Return the positions of payloads that no record names, by the log's own word.

    The index says which may be such. There are hardly ever any; if there are, all records are
    asked, because what goes here is gone.
    """
    held = storage.payloads
    positions = [at for at in storage.index.unnamed_payloads() if not held.is_blank(at)]
    if not positions:
        return []
    first = positions[0]
    hashes = held.leaf_hashes(first)
    starts = [(at - first) * HASH_SIZE for at in positions]
    found = {hashes[n : n + HASH_SIZE]: first + n // HASH_SIZE for n in starts}
    for _, leaf in storage.journal.scan():
        found.pop(record_pb2.Record.FromString(leaf).payload_digest, None)
    return sorted(found.values())


def _with_payloads(storage: Storage, task: str, end_us: int, after: int) -> Iterator[int]:
    """Yield the leaves of records with payloads, of whatever kind, OUTCOMEs and others."""
    search = Search(task=task, payload=True, end_us=end_us)
    while leaves := storage.index.search(search, after=after, limit=_PAGE):
        yield from leaves
        after = leaves[-1]


def _all_expired(storage: Storage, retention: Retention, subject: str, now_us: int) -> bool:
    newest = storage.index.newest_payloads(subject)
    return all(retention.expired(task, time_us, now_us) for task, time_us in newest.items())


def _renew(storage: Storage, retention: Retention, subjects: set[str], now_us: int) -> int:
    """Replace payload keys that have nothing left to open; return how many."""
    idle = [name for name in subjects if _all_expired(storage, retention, name, now_us)]
    return storage.keys.renew_payload_keys(idle)


def _answer(found: Expired, retention: Retention) -> audit_pb2.RetainResponse:
    return audit_pb2.RetainResponse(
        tasks=[
            audit_pb2.TaskRetention(
                task=task,
                retention_days=retention.days(task),
                expired=found.counts[task],
                kept=kept,
            )
            for task, kept in sorted(found.kept.items())
        ],
        keys_replaced=len(found.subjects),
        waiting=found.waiting,
        unnamed=len(found.unnamed),
    )
