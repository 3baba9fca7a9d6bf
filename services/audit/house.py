"""Opens the log, keeps it going, and says how it is: the service's life beside its calls.

A log that can't be opened yet (a disk that isn't mounted, another process that still holds it) is
tried again; one that is corrupt is not: a person must look.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from services.audit import upkeep
from services.audit.checkpoint import CheckpointError
from services.audit.expiry import Expiry
from services.audit.failures import CorruptLogError
from services.audit.ledger import Ledger
from services.audit.reading import Reader
from services.audit.settings import AuditSettings
from services.audit.storage import Storage, open_storage
from services.chassis.clock import Clock
from services.chassis.errors import DataLossError, ServiceError, UnavailableError

log = logging.getLogger(__name__)
_PROBE = "PROBE"


class House:
    """What the servicer serves from."""

    def __init__(self, settings: AuditSettings, clock: Clock) -> None:
        """Open nothing yet; see `open` and `run`."""
        self._settings = settings
        self._clock = clock
        self._ledger: Ledger | None = None
        self._reader: Reader | None = None
        self._expiry: Expiry | None = None
        self._closed: ServiceError = UnavailableError("LOG_OPENING", "the log is being opened")
        self._corrupt = False

    @property
    def ledger(self) -> Ledger:
        """The open ledger; a ServiceError that says why there is none."""
        if self._ledger is None:
            raise self._closed
        return self._ledger

    @property
    def reader(self) -> Reader:
        """The open ledger's reader; a ServiceError that says why there is none."""
        if self._reader is None:
            raise self._closed
        return self._reader

    @property
    def expiry(self) -> Expiry:
        """The open ledger's retention; a ServiceError that says why there is none."""
        if self._expiry is None:
            raise self._closed
        return self._expiry

    @property
    def catalog(self) -> Path | None:
        """The catalog's folder, if there is one."""
        return self._settings.catalog

    async def open(self) -> bool:
        """Try to open the log; False, with the reason kept for callers, if it can't be."""
        try:
            storage = await asyncio.to_thread(open_storage, self._settings, self._clock.unix_us())
        except (CorruptLogError, CheckpointError) as error:
            log.critical("the log is corrupt; not serving", extra={"why": str(error)})
            self._corrupt = True
            self._closed = DataLossError("LOG_CORRUPT", str(error))
        except OSError as error:
            if self._closed.message != str(error):
                log.error("the log can't be opened; trying again", extra={"why": str(error)})
            self._closed = UnavailableError("LOG_UNAVAILABLE", str(error), retry_after=1.0)
        else:
            self._ledger = Ledger(storage, self._settings, self._clock)
            self._expiry = Expiry(self._ledger, self._settings.retention_file)
            self._reader = Reader(self._ledger, self._expiry.gone)
            log.info("the log is open", extra={"records": storage.recovery.size})
            return True
        return False

    async def run(self) -> None:
        """Open the log if it isn't open, and keep it going. Raises when it must not go on."""
        while self._ledger is None:
            await asyncio.sleep(1.0)
            if not self._corrupt:
                await self.open()
        try:
            await self._keep_going(self._ledger)
        except* CorruptLogError as found:
            await self._refuse(found.exceptions[0])
            await asyncio.Event().wait()

    async def _keep_going(self, ledger: Ledger) -> None:
        settings = self._settings
        async with asyncio.TaskGroup() as group:
            group.create_task(_raise(ledger.failed))
            group.create_task(ledger.run_index())
            group.create_task(upkeep.check_payloads(ledger))
            group.create_task(upkeep.save_regularly(ledger))
            group.create_task(self.expiry.run_regularly(settings.retention_interval_s))
            group.create_task(upkeep.sign_regularly(self.reader, settings.checkpoint_interval_s))
            group.create_task(
                upkeep.reconcile_regularly(
                    ledger, settings.reconcile_interval_s, settings.reconcile_grace_s
                )
            )

    async def _refuse(self, error: BaseException) -> None:
        """Serve no more, and say why: a payload that nobody had read yet is damaged."""
        log.critical("the log is corrupt; not serving any more", extra={"why": str(error)})
        self._corrupt = True
        await self._shut(DataLossError("LOG_CORRUPT", f"a payload: {error}"))

    async def ping(self) -> None:
        """Raise unless the log takes records now."""
        storage = self.ledger.storage
        if self.ledger.failed.done():
            raise UnavailableError("LOG_FAILED", "the log failed; the process is stopping")
        await asyncio.to_thread(self._probe, storage)

    async def close(self) -> None:
        """Finish what waits, sign what is there, and close the files."""
        await self._shut(UnavailableError("LOG_CLOSING", "the service is stopping"))

    async def _shut(self, why: ServiceError) -> None:
        if self._ledger is None or self._reader is None:
            return
        ledger, self._ledger = self._ledger, None
        self._closed = why
        await ledger.close()
        if not ledger.failed.done():
            await self._reader.checkpoint(now=True)
            await ledger.index.flush()
            await upkeep.save(ledger)
        self._reader = self._expiry = None
        ledger.storage.close()

    def _probe(self, storage: Storage) -> None:
        storage.files.overwrite(_PROBE, b"writable\n")
        free = storage.files.free_bytes()
        if free < self._settings.min_free_bytes:
            raise UnavailableError("LOG_DISK_FULL", f"{free} bytes are free on the log's disk")


async def _raise(failed: asyncio.Future[None]) -> None:
    await asyncio.wait({failed})  # awaiting it would cancel it together with this task
    failed.result()
