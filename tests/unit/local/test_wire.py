"""The small HTTP client: kept connections, whole answers, and no answer for another request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from services.local.wire import UnreachableError, Wire
from tests.support import free_port

REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi"
Answerer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request as it is told."""

    def __init__(self) -> None:
        self.connections = self.requests = 0
        self.answer: Answerer = self.say(b"hello")
        self.asked = asyncio.Event()
        self.address = ""

    def say(self, body: bytes, *, more: bytes = b"", pieces: int = 1) -> Answerer:
        """A good answer, perhaps in pieces."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%sX-Y: a:b\r\n\r\n" % (len(body), more)

        async def answer(writer: asyncio.StreamWriter) -> None:
            whole = head + body
            step = -(-len(whole) // pieces)
            for at in range(0, len(whole), step):
                writer.write(whole[at : at + step])
                await writer.drain()
                await asyncio.sleep(0)

        return answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while await reader.readexactly(len(REQUEST)):
                self.requests += 1
                self.asked.set()
                await self.answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server."""
    found = Server()
    running = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    host, port = running.sockets[0].getsockname()
    found.address = f"{host}:{port}"
    async with running:
        yield found


@pytest.fixture
async def wire(server: Server) -> AsyncIterator[Wire]:
    """A client of it."""
    made = Wire(server.address)
    yield made
    made.close()


async def test_a_connection_is_kept_and_carries_one_request_at_a_time(
    server: Server, wire: Wire
) -> None:
    """One after another: one connection; four at once: four."""
    for _ in range(3):
        reply = await wire.post(REQUEST, 5)
        assert (reply.status, reply.body, reply.headers[b"x-y"]) == (200, b"hello", b"a:b")
    assert server.connections == 1
    await asyncio.gather(*(wire.post(REQUEST, 5) for _ in range(4)))
    assert (server.connections, server.requests) == (4, 7)


async def test_an_answer_in_pieces_is_put_together(server: Server, wire: Wire) -> None:
    """Wherever it is cut; an empty body is one too."""
    body = bytes(range(256)) * 100
    for pieces in (2, 7, 60):
        server.answer = server.say(body, pieces=pieces)
        assert (await wire.post(REQUEST, 5)).body == body
    server.answer = server.say(b"")
    assert (await wire.post(REQUEST, 5)).body == b""
    assert server.connections == 1


async def test_a_connection_that_the_server_ends_is_not_used_again(
    server: Server, wire: Wire
) -> None:
    """Announced by a header, or without a word."""
    server.answer = server.say(b"bye", more=b"Connection: close\r\n")
    assert (await wire.post(REQUEST, 5)).body == b"bye"
    server.answer = server.say(b"hello")
    await wire.post(REQUEST, 5)
    assert server.connections == 2


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000,
    ],
)
async def test_what_it_does_not_read_is_an_error(server: Server, wire: Wire, sent: bytes) -> None:
    """Never a half answer; and the next request gets a connection of its own."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    server.answer = answer
    with pytest.raises(ConnectionError):
        await wire.post(REQUEST, 5)
    server.answer = server.say(b"hello")
    assert (await wire.post(REQUEST, 5)).body == b"hello"
    assert server.connections == 2


async def test_a_cut_connection_is_an_error(server: Server, wire: Wire) -> None:
    """In the middle of an answer."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")
        await writer.drain()
        writer.close()

    server.answer = answer
    with pytest.raises(ConnectionError):
        await wire.post(REQUEST, 5)


@pytest.mark.parametrize("how", ["timeout", "cancel", "drop"])
async def test_a_late_answer_is_nobodys(server: Server, wire: Wire, how: str) -> None:
    """Who gives a request up leaves its connection behind: the next one gets its own answer."""
    go = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await server.say(b"late")(writer)

    server.answer = late
    if how == "timeout":
        with pytest.raises(TimeoutError):
            await wire.post(REQUEST, 0.05)
    else:
        asking = asyncio.create_task(wire.post(REQUEST, 60))
        await server.asked.wait()
        if how == "drop":
            wire.drop()
        else:
            asking.cancel()
        with pytest.raises(ConnectionError if how == "drop" else asyncio.CancelledError):
            await asking
    server.answer = server.say(b"next")
    asking = asyncio.create_task(wire.post(REQUEST, 5))
    go.set()
    assert (await asking).body == b"next"
    assert server.connections == 2


async def test_without_a_server_nothing_is_sent() -> None:
    """Which the error says, so that another way can be tried."""
    with pytest.raises(UnreachableError):
        await Wire(f"127.0.0.1:{free_port()}").post(REQUEST, 5)
