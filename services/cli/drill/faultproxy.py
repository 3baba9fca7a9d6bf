"""A TCP proxy that misbehaves on command: put it between two parts and play the network's faults.

It knows bytes only, so it serves for gRPC, HTTP and Redis alike. What it does is set while it
runs, with `apply`, and takes hold at once, for connections that are open too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

_CHUNK = 64 * 1024
_CHUNKS_HELD = 64  # for each direction; then the sender is made to wait, as a full network does


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong with the network. The default is nothing."""

    latency_s: float = 0.0  # added to each direction
    jitter_s: float = 0.0  # up to so much more; order is kept
    bytes_per_s: float | None = None  # for each connection and direction
    stall: bool = False  # bytes are held, and go on when this ends
    blackhole: bool = False  # bytes vanish; connections that lost some are reset when this ends
    refuse: bool = False  # the port is closed: no connection, and the open ones are reset
    reset_share: float = 0.0  # of answers' chunks: the connection is reset instead

    def __post_init__(self) -> None:
        """Raise ValueError for impossible faults."""
        if min(self.latency_s, self.jitter_s) < 0 or not 0 <= self.reset_share <= 1:
            raise ValueError("faults: times must not be negative, reset_share in 0..1")
        if self.bytes_per_s is not None and self.bytes_per_s <= 0:
            raise ValueError("faults: bytes_per_s must be positive; use stall for none at all")


@dataclass(slots=True)
class Counters:
    """What went through, and how many connections were reset on purpose."""

    connections: int = 0
    resets: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(slots=True, eq=False)
class _Connection:
    """One client and its connection to the target."""

    client: asyncio.StreamWriter
    upstream: asyncio.StreamWriter | None = None
    lost: bool = False
    task: asyncio.Task[None] | None = field(default=None)

    def reset(self) -> None:
        """End both sides with RST."""
        for writer in (self.client, self.upstream):
            if writer is not None:
                _abort(writer)
        if self.task is not None:
            self.task.cancel()


class FaultProxy:
    """Listens on a loopback port and forwards to one target. Belongs to one event loop."""

    def __init__(
        self,
        target: tuple[str, int],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Prepare; `start` binds.

        Args:
            target: host and port to forward to. It need not be up.
            host: to listen on.
            port: to listen on, 0 for a free one.
            chance: uniform over 0..1, for jitter and resets.
        """
        self.counters = Counters()
        self._target = target
        self._address = (host, port)
        self._chance = chance
        self._faults = Faults()
        self._changed = asyncio.Event()
        self._holder: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    @property
    def port(self) -> int:
        """The port that it listens on; the same for its whole life."""
        return self._address[1]

    @property
    def faults(self) -> Faults:
        """What is in force."""
        return self._faults

    async def start(self) -> None:
        """Bind and listen."""
        # Bound and never listening: it keeps the port ours while `refuse` has closed it. Another
        # process would otherwise be given it, and the drill would talk to a stranger.
        self._holder = self._bound()
        self._address = (self._address[0], self._holder.getsockname()[1])
        await self._listen()

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        await self._unlisten()
        tasks = [c.task for c in self._connections if c.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def apply(self, faults: Faults) -> None:
        """Put these faults in force, in place of those before."""
        before, self._faults = self._faults, faults
        self._changed.set()
        self._changed = asyncio.Event()
        if before.blackhole and not faults.blackhole:
            self._break([c for c in self._connections if c.lost])
        if faults.refuse and self._server is not None:
            await self._unlisten()
            self.reset_all()
        elif not faults.refuse and self._server is None:
            await self._listen()

    def reset_all(self) -> None:
        """Reset every open connection, as a crashed peer's machine does."""
        self._break(list(self._connections))

    def _bound(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind(self._address)
        except OSError:
            listener.close()
            raise
        return listener

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._bound(), limit=_CHUNK)

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()  # not wait_closed: it waits for connections, which go on
            self._server = None

    def _break(self, connections: list[_Connection]) -> None:
        for connection in connections:
            self.counters.resets += 1
            connection.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer, task=asyncio.current_task())
        self._connections.add(connection)
        self.counters.connections += 1
        try:
            await self._join(connection, reader)
            for ended in (writer, connection.upstream):
                if ended is not None:
                    ended.close()
                    await ended.wait_closed()
        except (OSError, asyncio.CancelledError):
            connection.task = None  # this one; it is ending
            connection.reset()
        finally:
            self._connections.discard(connection)

    async def _join(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        if self._faults.blackhole:
            connection.lost = True  # it looks connected and never reaches anybody
            while await reader.read(_CHUNK):
                pass
            return
        upstream, connection.upstream = await asyncio.open_connection(*self._target, limit=_CHUNK)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pipe(connection, reader, connection.upstream, answers=False))
            group.create_task(self._pipe(connection, upstream, connection.client, answers=True))

    async def _pipe(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answers: bool,
    ) -> None:
        """Forward one direction: one task reads and stamps, this one delays and writes."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_HELD)
        loop = asyncio.get_running_loop()

        async def read() -> None:
            try:
                while chunk := await reader.read(_CHUNK):
                    await held.put((loop.time(), chunk))
                await held.put((loop.time(), b""))
            except OSError:
                connection.reset()  # a reset is passed on as what it is

        reading = asyncio.create_task(read())
        try:
            while True:
                arrived, chunk = await held.get()
                await self._delay(arrived)
                if not chunk:
                    writer.write_eof()
                    return
                if self._faults.blackhole:
                    connection.lost = True
                elif answers and self._chance() < self._faults.reset_share:
                    self._break([connection])
                else:
                    await self._write(writer, chunk)
                    if answers:
                        self.counters.bytes_down += len(chunk)
                    else:
                        self.counters.bytes_up += len(chunk)
        except OSError:
            connection.reset()
        finally:
            reading.cancel()

    async def _delay(self, arrived: float) -> None:
        """Wait until a chunk may go on, by the faults in force at each moment."""
        loop = asyncio.get_running_loop()
        share = self._chance()
        while True:
            faults = self._faults
            if faults.stall:
                await self._changed.wait()
                continue
            left = arrived + faults.latency_s + share * faults.jitter_s - loop.time()
            if left <= 0 or faults.blackhole:
                return
            await self._pause(left)

    async def _write(self, writer: asyncio.StreamWriter, chunk: bytes) -> None:
        """Write at the bandwidth in force, in pieces of a twentieth of a second."""
        rest = memoryview(chunk)
        while rest:
            while self._faults.stall:
                await self._changed.wait()
            rate = self._faults.bytes_per_s
            size = len(rest) if rate is None else min(len(rest), max(1, int(rate / 20)))
            writer.write(bytes(rest[:size]))
            await writer.drain()
            rest = rest[size:]
            if rate is not None:
                await self._pause(size / rate)

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until other faults are applied."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST, not FIN: the peer shall see a broken connection, not a polite end."""
    if writer.transport.is_closing():
        return
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
