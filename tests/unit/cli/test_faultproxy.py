"""The proxy passes bytes unchanged, and plays each fault when told, on connections already open."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.cli.drill.faultproxy import FaultProxy, Faults


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, int]]:
    """A server that sends back what it gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
            writer.write_eof()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield ("127.0.0.1", server.sockets[0].getsockname()[1])
    server.close()


@pytest.fixture
async def proxy(echo: tuple[str, int]) -> AsyncIterator[FaultProxy]:
    """A proxy in front of it."""
    async with FaultProxy(echo) as started:
        yield started


class Client:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, proxy: FaultProxy) -> Client:
        """Connect to the proxy."""
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def ask(self, message: bytes) -> bytes:
        """Send and wait for as many bytes."""
        self.writer.write(message)
        async with asyncio.timeout(10):
            return await self.reader.readexactly(len(message))

    async def silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        """Hang up."""
        self.writer.close()


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    """A connection that has already carried something."""
    connected = await Client.connect(proxy)
    assert await connected.ask(b"hello") == b"hello"
    yield connected
    connected.close()


async def test_bytes_pass_unchanged(proxy: FaultProxy, client: Client) -> None:
    """A few megabytes come back as they were, and are counted."""
    message = bytes(range(256)) * 8192

    async def send() -> None:
        client.writer.write(message)
        await client.writer.drain()

    sending = asyncio.create_task(send())
    assert await client.reader.readexactly(len(message)) == message
    await sending
    assert proxy.counters.bytes_up == proxy.counters.bytes_down == len(message) + 5


async def test_an_end_is_passed_on_after_all_bytes(proxy: FaultProxy) -> None:
    """Half-closing works, and nothing that was on its way is cut off."""
    client = await Client.connect(proxy)
    client.writer.write(b"x" * 500_000)
    client.writer.write_eof()
    assert len(await client.reader.read(-1)) == 500_000
    client.close()


async def test_latency_delays_both_directions(proxy: FaultProxy, client: Client) -> None:
    """With 50 ms each way, an answer takes at least 100 ms; then none again."""
    await proxy.apply(Faults(latency_s=0.05))
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert await client.ask(b"late") == b"late"
    assert loop.time() - start >= 0.1
    await proxy.apply(Faults(latency_s=3600))
    client.writer.write(b"held")
    assert await client.silent()
    await proxy.apply(Faults())
    assert await client.reader.readexactly(4) == b"held"


async def test_order_is_kept_under_jitter(proxy: FaultProxy, client: Client) -> None:
    """Jitter delays, it does not reorder a stream."""
    await proxy.apply(Faults(jitter_s=0.005))
    messages = [bytes([i]) * 10 for i in range(50)]
    for message in messages:
        client.writer.write(message)
        await asyncio.sleep(0)
    assert await client.reader.readexactly(500) == b"".join(messages)


async def test_bandwidth_is_bounded(proxy: FaultProxy, client: Client) -> None:
    """20 kB at 100 kB/s take at least 0.1 s, and come whole."""
    await proxy.apply(Faults(bytes_per_s=100_000))
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert await client.ask(b"z" * 20_000) == b"z" * 20_000
    assert loop.time() - start >= 0.1


async def test_a_stall_holds_bytes_and_lets_them_go(proxy: FaultProxy, client: Client) -> None:
    """Nothing comes while it lasts; afterwards nothing is missing."""
    await proxy.apply(Faults(stall=True))
    client.writer.write(b"held")
    assert await client.silent()
    await proxy.apply(Faults())
    assert await client.reader.readexactly(4) == b"held"


async def test_a_stall_holds_new_connections_too(proxy: FaultProxy) -> None:
    """They connect, and hear nothing until it ends."""
    await proxy.apply(Faults(stall=True))
    client = await Client.connect(proxy)
    client.writer.write(b"held")
    assert await client.silent()
    await proxy.apply(Faults())
    assert await client.reader.readexactly(4) == b"held"
    client.close()


async def test_a_black_hole_swallows_and_ends_in_a_reset(proxy: FaultProxy, client: Client) -> None:
    """Old and new connections go silent; those that lost bytes can't go on afterwards."""
    await proxy.apply(Faults(blackhole=True))
    late = await Client.connect(proxy)
    for each in (client, late):
        each.writer.write(b"gone")
        assert await each.silent()
    await proxy.apply(Faults())
    for each in (client, late):
        with pytest.raises(ConnectionResetError):
            await each.reader.read(1)
        each.close()
    fresh = await Client.connect(proxy)
    assert await fresh.ask(b"back") == b"back"
    fresh.close()


async def test_refuse_closes_the_port_and_keeps_it(proxy: FaultProxy, client: Client) -> None:
    """Connections are refused and cut, nobody else can have the port, and it comes back."""
    await proxy.apply(Faults(refuse=True))
    with pytest.raises(ConnectionResetError):
        await client.reader.read(1)
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(proxy)
    with socket.socket() as thief, pytest.raises(OSError) as error:
        thief.bind(("127.0.0.1", proxy.port))
    assert error.value.errno == errno.EADDRINUSE
    await proxy.apply(Faults())
    fresh = await Client.connect(proxy)
    assert await fresh.ask(b"back") == b"back"
    fresh.close()


async def test_reset_all_cuts_what_is_open_and_nothing_else(
    proxy: FaultProxy, client: Client
) -> None:
    """The peer sees a reset; the next connection works."""
    proxy.reset_all()
    with pytest.raises(ConnectionResetError):
        await client.reader.read(1)
    fresh = await Client.connect(proxy)
    assert await fresh.ask(b"next") == b"next"
    fresh.close()
    assert proxy.counters.resets == 1


async def test_a_share_of_answers_is_reset(echo: tuple[str, int]) -> None:
    """The third answer of three is cut, by the numbers that were drawn."""
    draws = iter([0.9, 0.9, 0.9] * 2 + [0.9, 0.9, 0.1] + [0.9] * 50)
    async with FaultProxy(echo, chance=lambda: next(draws)) as proxy:
        await proxy.apply(Faults(reset_share=0.5))
        client = await Client.connect(proxy)
        assert await client.ask(b"one") == b"one"
        assert await client.ask(b"two") == b"two"
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.ask(b"three")
        assert proxy.counters.resets == 1
        client.close()


async def test_a_target_that_is_down_is_a_broken_connection() -> None:
    """The proxy itself stays up, and recovers with the target."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = ("127.0.0.1", unused.getsockname()[1])
        async with FaultProxy(target) as proxy:
            client = await Client.connect(proxy)
            with pytest.raises(ConnectionResetError):
                await client.reader.read(1)
            client.close()


async def test_a_reset_by_the_target_is_passed_on_as_a_reset() -> None:
    """Not as a polite end: clients treat the two differently."""

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()

    server = await asyncio.start_server(rude, "127.0.0.1", 0)
    async with FaultProxy(("127.0.0.1", server.sockets[0].getsockname()[1])) as proxy:
        client = await Client.connect(proxy)
        client.writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)
        client.close()
    server.close()


async def test_close_leaves_nothing(echo: tuple[str, int]) -> None:
    """After it, no task and no port of the proxy is left."""
    before = asyncio.all_tasks()
    proxy = FaultProxy(echo)
    await proxy.start()
    clients = [await Client.connect(proxy) for _ in range(5)]
    for client in clients:
        await client.ask(b"x")
    await proxy.close()
    for client in clients:
        with contextlib.suppress(OSError):
            await client.reader.read(1)
        client.close()
    await asyncio.sleep(0.01)
    left = [task for task in asyncio.all_tasks() - before if "FaultProxy" in repr(task)]
    assert not left
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(proxy)


@pytest.mark.parametrize("wrong", [{"latency_s": -1.0}, {"bytes_per_s": 0.0}, {"reset_share": 2.0}])
def test_impossible_faults_are_refused(wrong: dict[str, Any]) -> None:
    """A drill with a mistake does not start."""
    with pytest.raises(ValueError, match="faults:"):
        Faults(**wrong)
