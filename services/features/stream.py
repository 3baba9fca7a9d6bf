"""Rows from a Redis stream: at least once, resumed after a crash, poison set aside.

An entry is acknowledged after it is written. What was read and not acknowledged, by this process
before it died or by another, is claimed after a while and written again; that is harmless,
because an older or equal row never overwrites. An entry that can never be written goes to the
stream `<name>:dead` with the reason, and is acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation
from prometheus_client import Counter
from redis.exceptions import ResponseError

from services.chassis.errors import (
    InvalidArgumentError,
    NotFoundError,
    ServiceError,
    UnavailableError,
)
from services.features.online import AWAY
from services.features.prepared import Live
from services.features.push import Pusher
from services.features.stream_entry import (
    Entry,
    EntryError,
    column_types,
    read_entry,
    row_columns,
)

log = logging.getLogger(__name__)

ENTRIES = Counter(
    "twinpath_features_stream_entries_total",
    "Entries of the stream, by what became of them; one that is retried is counted each time.",
    ("result",),
)

Raw = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream is read.

    `consumer` names this process within the group. Entries that nobody has acknowledged for
    `claim_after_s` are taken over; one for a push source that is unknown is poison after
    `max_deliveries`. `block_s` must be shorter than the client's own time-out.
    """

    name: str
    group: str
    consumer: str
    claim_after_s: float
    max_deliveries: int = 5
    count: int = 200
    block_s: float = 0.4
    dead_length: int = 10_000


class StreamConsumer:
    """Writes a stream's entries to the online store.

    Args:
        redis: Gives the client of the stream's server.
        live: The registry in force.
        pusher: Writes rows.
        options: How to read.
        sleep: Waits; `asyncio.sleep`.
    """

    def __init__(
        self,
        redis: Callable[[], Any],
        live: Live,
        pusher: Pusher,
        options: StreamOptions,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._redis = redis
        self._live = live
        self._pusher = pusher
        self._options = options
        self._sleep = sleep
        self._grouped = False
        self._claimed_at = float("-inf")
        self._deliveries: dict[bytes, int] = {}

    async def run(self) -> None:
        """Read and write until cancelled. A store that is away is waited for."""
        pause = 0.1
        with suppress_instrumentation():
            while True:
                try:
                    await self._turn()
                    pause = 0.1
                except (*AWAY, ServiceError) as error:
                    self._grouped = False  # an emptied store has no group any more
                    log.warning(
                        "stream not read", extra={"why": f"{type(error).__name__}: {error}"}
                    )
                    await self._sleep(pause)
                    pause = min(pause * 2, 5.0)

    async def _turn(self) -> None:
        self._live.get()  # without a registry nothing can be written: leave it to others
        await self._ensure_group()
        now = asyncio.get_running_loop().time()
        if now - self._claimed_at >= self._options.claim_after_s / 2:
            while await self._claim():
                pass
            self._claimed_at = now
        options = self._options
        found = await self._redis().xreadgroup(
            options.group,
            options.consumer,
            {options.name: ">"},
            count=options.count,
            block=int(options.block_s * 1000),
        )
        await self._take(_entries(found))

    async def _ensure_group(self) -> None:
        if self._grouped:
            return
        try:
            await self._redis().xgroup_create(
                self._options.name, self._options.group, id="0", mkstream=True
            )
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._grouped = True

    async def _claim(self) -> bool:
        """Take over what nobody acknowledged; tell whether there may be more."""
        options = self._options
        _, entries, *_ = await self._redis().xautoclaim(
            options.name,
            options.group,
            options.consumer,
            min_idle_time=int(options.claim_after_s * 1000),
            start_id="0-0",
            count=options.count,
        )
        entries = [(entry_id, fields) for entry_id, fields in entries if fields]
        if not entries:
            return False
        pending = await self._redis().xpending_range(
            options.name, options.group, entries[0][0], entries[-1][0], options.count * 10
        )
        self._deliveries = {item["message_id"]: item["times_delivered"] for item in pending}
        await self._take(entries)
        return len(entries) == options.count

    async def _take(self, entries: Sequence[Raw]) -> None:
        """Write entries in batches of the same shape; a batch that fails goes one by one."""
        batches: dict[tuple[str, ...], list[tuple[Raw, Entry]]] = {}
        for raw in entries:
            try:
                entry = read_entry(*raw)
            except EntryError as error:
                await self._bury(raw, "STREAM_ENTRY_INVALID", str(error))
                continue
            shape = (entry.source, *entry.row) if entry.row else (entry.source, repr(entry.id))
            batches.setdefault(shape, []).append((raw, entry))
        for batch in batches.values():
            if len(batch) > 1 and await self._patiently([entry for _, entry in batch]) is None:
                continue
            for raw, entry in batch:
                fault = await self._patiently([entry])
                if fault is not None:
                    await self._bury(raw, *fault)

    async def _patiently(self, batch: Sequence[Entry]) -> tuple[str, str] | None:
        """Write as soon as the store takes it: that it is away is no fault of the entries."""
        pause = 0.1
        while True:
            try:
                return await self._write(batch)
            except (*AWAY, UnavailableError) as error:
                log.warning("stream waits for the store", extra={"why": str(error)})
            await self._sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _write(self, batch: Sequence[Entry]) -> tuple[str, str] | None:
        """Write and acknowledge; return (reason, message) when they can never be written."""
        in_force = self._live.get()
        try:
            source = in_force.push_source(batch[0].source)
            columns = batch[0].columns
            if columns is None:
                rows = [entry.row for entry in batch if entry.row is not None]
                columns = row_columns(rows, column_types(source))
            _, older = await self._pusher.push(source, in_force.registry.project, columns)
        except EntryError as error:
            return "STREAM_ENTRY_INVALID", str(error)
        except InvalidArgumentError as error:
            texts = "; ".join(f"{where}: {text}" for where, text in error.violations[:10])
            return error.reason, f"{error.message}: {texts}"
        except NotFoundError as error:
            # Perhaps a definition that is being applied: claimed and tried again, up to the limit.
            if any(self._deliveries.get(e.id, 1) >= self._options.max_deliveries for e in batch):
                return error.reason, error.message
            ENTRIES.labels("retried").inc(len(batch))
            log.warning("stream entry waits", extra={"why": error.message})
            return None
        except (*AWAY, UnavailableError):
            raise
        except Exception as error:  # noqa: BLE001 - one entry must not stop all that follow
            return "STREAM_ENTRY_UNWRITABLE", type(error).__name__
        await self._redis().xack(
            self._options.name, self._options.group, *(entry.id for entry in batch)
        )
        older = min(older, len(batch))
        ENTRIES.labels("older").inc(older)
        ENTRIES.labels("written").inc(len(batch) - older)
        return None

    async def _bury(self, raw: Raw, reason: str, message: str) -> None:
        """Set an entry aside. It may stand there twice after a crash, never nowhere."""
        entry_id, fields = raw
        options = self._options
        note = {b"entry_id": entry_id, b"reason": reason.encode()}
        note[b"message"] = message[:1000].encode()
        await self._redis().xadd(
            f"{options.name}:dead", {**fields, **note}, maxlen=options.dead_length, approximate=True
        )
        await self._redis().xack(options.name, options.group, entry_id)
        ENTRIES.labels("dead").inc()
        log.warning("stream entry set aside", extra={"reason": reason, "entry": entry_id.decode()})


def _entries(found: Any) -> list[Raw]:
    streams: Iterable[Any] = found.items() if isinstance(found, dict) else found or ()
    return [(entry_id, fields) for _, entries in streams for entry_id, fields in entries if fields]
