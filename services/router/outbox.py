"""The outbox: where records wait, on disk, while the audit service is away.

Only for tasks that allow it, and never for restricted data. An entry is acknowledged once it is
synced to the local file; the drain appends the entries to the log in their order when the service
is back. While anything waits, new entries queue behind it, so that the records of a decision keep
their order. A sync that fails is never retried: from then on nothing is acknowledged here.

File: frames of u32 length, u32 CRC-32, then the serialized Entry; little-endian. A torn tail was
never acknowledged and is cut at the start. An entry may reach the log twice if the router dies
between append and note; an OUTCOME is still one, the log sees to that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from services.chassis.clock import Clock
from services.chassis.coalesce import Coalescer
from services.chassis.errors import ResourceExhaustedError, ServiceError, UnavailableError
from services.router.ports import Audit
from twinpath.audit.v1 import audit_pb2

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<II")
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_SYNC_TIMEOUT_S = 5.0


def read_frames(raw: bytes) -> tuple[list[bytes], int]:
    """Return the whole frames of a file's contents, and where they end."""
    frames = []
    at = 0
    while at + _HEAD.size <= len(raw):
        size, check = _HEAD.unpack_from(raw, at)
        body = raw[at + _HEAD.size : at + _HEAD.size + size]
        if len(body) < size or zlib.crc32(body) != check:
            break
        frames.append(body)
        at += _HEAD.size + size
    return frames, at


class Outbox:
    """A bounded file of entries, in order."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        max_bytes: int,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._path = path
        self._clock = clock
        self._max_bytes = max_bytes
        self._sync = sync
        self._broken = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = path.read_bytes() if path.exists() else b""
        frames, end = read_frames(raw)
        if end < len(raw):
            log.warning("outbox: cut a torn tail", extra={"bytes": len(raw) - end})
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        self._size = end
        self._waiting: deque[audit_pb2.Entry] = deque(
            audit_pb2.Entry.FromString(frame) for frame in frames
        )
        self._hop: Coalescer[audit_pb2.Entry, int] = Coalescer(self._write, clock, max_batch=256)

    def __len__(self) -> int:
        """How many entries wait."""
        return len(self._waiting)

    async def put(self, entry: audit_pb2.Entry) -> None:
        """Make an entry durable here.

        Raises:
            UnavailableError: the disk failed.
            ResourceExhaustedError: the outbox is full.
        """
        await self._hop.submit(entry, "", self._clock.monotonic() + _SYNC_TIMEOUT_S)

    async def _write(
        self, entries: Sequence[audit_pb2.Entry], left: float
    ) -> list[int | ServiceError]:
        del left  # a sync takes what it takes
        if self._broken:
            raise UnavailableError("OUTBOX_BROKEN", self._broken)
        frames = []
        for entry in entries:
            body = entry.SerializeToString()
            frames.append(_HEAD.pack(len(body), zlib.crc32(body)) + body)
        data = b"".join(frames)
        if self._size + len(data) > self._max_bytes:
            raise ResourceExhaustedError("OUTBOX_FULL", "too many records wait for the audit log")
        try:
            await asyncio.shield(asyncio.to_thread(self._write_and_sync, data))
        except OSError as error:
            self._broken = f"the outbox could not be written: {error.strerror}"
            log.exception("outbox broken; nothing is acknowledged from now on")
            raise UnavailableError("OUTBOX_BROKEN", self._broken) from None
        self._size += len(data)
        self._waiting.extend(entries)
        return [0] * len(entries)

    def _write_and_sync(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        self._sync(self._file)

    async def drain(self, audit: Audit) -> None:
        """Append what waits to the log, in order; stop at the first entry that is not taken."""
        while self._waiting:
            try:
                await audit.append(self._waiting[0])
            except ServiceError as error:
                if error.code in _AWAY or error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return
                # The log will never take it. It must not hold up the rest, nor vanish unseen.
                body = self._waiting[0].SerializeToString()
                rejected = self._path.with_suffix(".rejected")
                await asyncio.to_thread(_append, rejected, body)
                log.exception("the log refused a record from the outbox", extra={"kept": rejected})
            self._waiting.popleft()
        if self._size:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            self._size = 0
            log.info("outbox drained")

    async def close(self) -> None:
        """Close the file; what waits stays for the next start."""
        await self._hop.close()
        os.close(self._file)


def _append(path: Path, body: bytes) -> None:
    with path.open("ab") as file:
        file.write(_HEAD.pack(len(body), zlib.crc32(body)) + body)


class OutboxAudit:
    """The audit port, with an outbox behind it for entries that `allows` admits."""

    def __init__(
        self, audit: Audit, outbox: Outbox, allows: Callable[[audit_pb2.Entry], bool]
    ) -> None:
        self._audit = audit
        self._outbox = outbox
        self._allows = allows

    async def append(self, entry: audit_pb2.Entry) -> audit_pb2.AppendResult:
        """See ports.Audit. An entry in the outbox has no place in the log yet: index 0."""
        allowed = self._allows(entry)
        if not (allowed and len(self._outbox)):
            try:
                return await self._audit.append(entry)
            except ServiceError as error:
                if not allowed or error.code not in _AWAY:
                    raise
        await self._outbox.put(entry)
        return audit_pb2.AppendResult(id=entry.context.id)

    async def get(self, decision_id: str, *, payload: bool) -> list[audit_pb2.StoredRecord]:
        """See ports.Audit."""
        return await self._audit.get(decision_id, payload=payload)

    async def watch(self, interval_s: float) -> None:
        """Drain until cancelled."""
        while True:
            if len(self._outbox):
                with contextlib.suppress(ServiceError):
                    await self._outbox.drain(self._audit)
            await asyncio.sleep(interval_s)
