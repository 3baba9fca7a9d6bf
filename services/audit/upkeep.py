"""What the service does by itself: signs checkpoints, closes INTENTs without an end, erases."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from pathlib import Path

from services.audit import copies, metrics, records
from services.audit.failures import CorruptLogError
from services.audit.index import Search
from services.audit.keystore import ErasureIncompleteError
from services.audit.ledger import Ledger
from services.audit.reading import Reader
from services.chassis.errors import NotFoundError, UnavailableError
from twinpath.audit.v1 import audit_pb2, record_pb2

log = logging.getLogger(__name__)
_SAVE_EVERY_S = 5.0
_SAVE_RECORDS = 25_000
_END = object()


async def sign_regularly(reader: Reader, every_s: float) -> None:
    """Sign a checkpoint whenever the log has grown, every so many seconds, until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        await reader.checkpoint(now=True)


async def save_regularly(ledger: Ledger) -> None:
    """Keep what makes a start quick whenever the log has grown much, until cancelled."""
    saved = ledger.storage.tree.size
    while True:
        await asyncio.sleep(_SAVE_EVERY_S)
        if ledger.storage.tree.size - saved >= _SAVE_RECORDS:
            saved = await save(ledger)


async def save(ledger: Ledger) -> int:
    """Keep the filter of decisions and the tree now; return the log's size that they stand for."""
    storage = ledger.storage
    size = storage.tree.size
    mark = storage.mark_at(size)
    try:
        await asyncio.to_thread(storage.save_seen, size, mark)
        await asyncio.to_thread(storage.save_tree)
    except OSError as error:
        log.warning("can't keep the start's short cuts", extra={"why": str(error)})
    return size


async def check_payloads(ledger: Ledger) -> None:
    """Check all payloads once, and leave the disk to the appends half of the time.

    Raises:
        CorruptLogError: one is damaged.
    """
    steps = ledger.storage.payloads.check_sealed()
    while True:
        start = time.monotonic()
        if await asyncio.to_thread(next, steps, _END) is _END:
            return
        await asyncio.sleep(time.monotonic() - start)


async def reconcile_regularly(ledger: Ledger, every_s: float, grace_s: float) -> None:
    """Close overdue INTENTs every so many seconds, until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        await reconcile(ledger, int(grace_s * 1_000_000))


async def reconcile(ledger: Ledger, grace_us: int) -> int:
    """Append an ABANDONED record for each INTENT past its deadline that has no end.

    Returns how many were closed. A late OUTCOME is still taken: it is what happened.
    """
    await ledger.index.settle()
    index, journal = ledger.storage.index, ledger.storage.journal
    overdue = await asyncio.to_thread(
        index.overdue, ledger.now_us() - grace_us, sorted(records.ENDS)
    )
    ready = []
    for decision, leaf in overdue:
        if ledger.is_claimed(decision):
            continue
        try:
            intent = record_pb2.Record.FromString(journal.read(leaf))
        except CorruptLogError as error:
            log.error("can't read an INTENT", extra={"why": str(error)})
            continue
        now = ledger.now_us()
        closing = records.abandoned(intent, now)
        closing.record_time_unix_us = now
        ready.append(records.finish(closing))
    appended = await ledger.append_own(ready)
    closed = sum(1 for result in appended if result.error is None)
    if closed:
        metrics.ABANDONED.inc(closed)
        log.warning("closed INTENTs without an end", extra={"count": closed})
    return closed


async def erase(
    ledger: Ledger, subject: audit_pb2.Subject, actor: str, reason: str, catalog: Path | None
) -> audit_pb2.EraseResponse:
    """Destroy a subject's keys.

    The ERASURE record is durable first, so that a crash in between is made good at the next start.

    Raises:
        NotFoundError: no decision was ever recorded about the subject, or it was erased before.
        ServiceError: the record could not be written; nothing was erased.
    """
    keys_store = ledger.storage.keys
    name = records.subject_name(subject)
    keys = await asyncio.to_thread(keys_store.find, name)
    if keys is None:
        raise NotFoundError("SUBJECT_UNKNOWN", "no keys are kept for this subject")
    await ledger.index.settle()
    count = await asyncio.to_thread(ledger.storage.index.count, Search(subject=keys.pseudonym))
    elsewhere = await asyncio.to_thread(copies.not_reached, ledger.storage, keys.pseudonym, catalog)
    now = ledger.now_us()
    event_id = f"erasure-{uuid.uuid4().hex}"
    record = records.erasure(event_id, keys.pseudonym, actor, reason, now)
    record.record_time_unix_us = now
    for number, copy in enumerate(elsewhere, 1):
        record.event.details[f"not_reached_{number}"] = copy
    result = (await ledger.append_own([records.finish(record)]))[0]
    if result.error is not None:
        raise result.error
    try:
        await asyncio.to_thread(keys_store.destroy, name, now)
    except ErasureIncompleteError as error:
        raise UnavailableError(
            "ERASURE_INCOMPLETE", "recorded; the key store is busy and will forget at a restart"
        ) from error
    finally:
        ledger.names.clear()
    return audit_pb2.EraseResponse(
        erasure_id=event_id, leaf_index=result.leaf, records=count, not_reached=elsewhere
    )
