"""A small HTTP/1.1 client: POST, kept connections, answers with a Content-Length.

gRPC's asyncio client hands each call through two threads. With this one a call of Triton takes a
third of the CPU where one is under way, and half where eight are. It can do what Triton's HTTP door
needs and nothing else: one request at a time on each connection, no redirects, no encodings, no
chunks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

_MOST_IDLE = 64
_END = b"\r\n\r\n"
_LONGEST_HEAD = 16 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `headers` has lower-case names."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[Reply] | None = None
        self._data = b""
        self._head: tuple[int, dict[bytes, bytes], int, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.fail(exc or ConnectionResetError("the connection was closed"))

    async def ask(self, request: bytes) -> Reply:
        """Send a request, wait for its answer."""
        assert self._transport is not None
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._reply

    def fail(self, error: Exception) -> None:
        """Close it; who waits for an answer gets the error."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._data = self._data + data if self._data else data
        if self._reply is None or self._reply.done():
            self.fail(ConnectionError("an answer that nobody asked for"))
            return
        try:
            reply = self._parsed()
        except (ValueError, KeyError):
            self.fail(ConnectionError("the answer is no HTTP that we read"))
            return
        if reply is None:
            return
        self._data, self._head = b"", None
        if reply.headers.get(b"connection", b"").lower() == b"close":
            self.open = False
        self._reply.set_result(reply)

    def _parsed(self) -> Reply | None:
        """Return the answer once it is there. Raises ValueError, KeyError."""
        if self._head is None:
            end = self._data.find(_END)
            if end < 0:
                if len(self._data) > _LONGEST_HEAD:
                    raise ValueError("no end of the headers")
                return None
            first, *lines = self._data[:end].split(b"\r\n")
            if not first.startswith(b"HTTP/1.1 "):
                raise ValueError("not HTTP/1.1")
            pairs = (line.partition(b":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            size = int(headers[b"content-length"])
            self._head = int(first[9:12]), headers, end + len(_END), size
        status, headers, start, size = self._head
        if len(self._data) < start + size:
            return None
        if len(self._data) > start + size:
            raise ValueError("more than was announced")
        return Reply(status, headers, self._data[start:])


class Wire:
    """Connections to one address."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()

    async def post(self, request: bytes, timeout: float) -> Reply:
        """Send a whole request, head and body; return its answer.

        Raises:
            UnreachableError: no connection came about, so that nothing was sent.
            ConnectionError: it broke before the answer was whole.
            TimeoutError: after `timeout` seconds.
        """
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(timeout):
                connection = self._kept() or await self._connect()
                self._busy.add(connection)
                reply = await connection.ask(request)
        except BaseException:
            if connection is not None:
                connection.fail(ConnectionError("given up"))
            raise
        finally:
            if connection is not None:
                self._busy.discard(connection)
        if connection.open and len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.fail(ConnectionError("not needed"))
        return reply

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        except OSError as error:
            raise UnreachableError(str(error)) from error
        return connection

    def drop(self) -> None:
        """Break the connections that wait for an answer; who waits gets a ConnectionError."""
        for connection in list(self._busy):
            connection.fail(ConnectionError("dropped"))

    def close(self) -> None:
        """Close all connections."""
        self.drop()
        for connection in self._idle:
            connection.fail(ConnectionError("closed"))
        self._idle.clear()


class UnreachableError(Exception):
    """Nobody listens there."""
