"""Calls between services that share a process: the same frame and the same bytes, no socket.

A composition root says by `hosted` which services are here; `connect` (channels.py) then gives a
channel whose calls go straight to their handlers. Nothing else changes: the request is serialized
and parsed, the handler stands behind its span, its boundary and its door, identity comes by token,
a status by its trailers. The handler runs in a task and a context of its own, as behind a socket,
and is cancelled when its deadline passes or nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from services.chassis.handlers import Handlers, behaviour_of

_AHEAD = 4  # messages of a stream that wait for its reader; then the handler waits
_HERE: dict[str, Handlers] = {}

Metadata = tuple[tuple[str, str | bytes], ...]


@contextmanager
def hosted(address: str, handlers: Handlers) -> Iterator[None]:
    """Have calls to an address, made in this process, go to these handlers for a while."""
    _HERE[address] = handlers
    try:
        yield
    finally:
        del _HERE[address]


def at(address: str) -> Handlers | None:
    """Return the handlers of the service that is hosted here under an address, if one is."""
    return _HERE.get(address)


class InProcessChannel:
    """What a generated stub needs of a channel, for a service in this process.

    Args:
        handlers: The service's.
        max_message_bytes: The largest request it takes.
    """

    def __init__(self, handlers: Handlers, max_message_bytes: int) -> None:
        self._handlers = handlers
        self._max = max_message_bytes

    def unary_unary(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., _Answer]:
        """Return what makes unary calls of a method."""
        return self._calls(_Answer, method, request_serializer, response_deserializer)

    def unary_stream(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., _Answers]:
        """Return what makes calls of a method with a streamed answer."""
        return self._calls(_Answers, method, request_serializer, response_deserializer)

    def _calls(
        self, kind: Callable[..., Any], method: str, serialize: Any, deserialize: Any
    ) -> Callable[..., Any]:
        handler = self._handlers.service(SimpleNamespace(method=method))

        def call(
            request: Any, *, timeout: float, metadata: Any, wait_for_ready: bool | None = None
        ) -> Any:
            del wait_for_ready  # it is here
            data = serialize(request)
            context = _Context(timeout, metadata)
            if handler is None:
                context.fail(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            elif len(data) > self._max:
                text = f"Received message larger than max ({len(data)} vs. {self._max})"
                context.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            return kind(handler, context, data, deserialize)

        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return READY: there is no connection to lose."""
        del try_to_connect
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last: grpc.ChannelConnectivity) -> None:
        """Return once the state is another one than `last`; it stays READY."""
        if last is grpc.ChannelConnectivity.READY:
            await asyncio.get_running_loop().create_future()

    async def channel_ready(self) -> None:
        """Return: it is."""

    async def close(self, grace: float | None = None) -> None:
        """Nothing to close."""


class _Context:
    """What the frame asks of gRPC's context; and how the call failed."""

    def __init__(self, timeout: float, metadata: Any) -> None:
        self._deadline = time.monotonic() + timeout
        self._metadata: Metadata = tuple(metadata or ())
        self.error: grpc.aio.AioRpcError | None = None

    def fail(self, code: grpc.StatusCode, details: str, trailers: Any = ()) -> None:
        """Note how the call failed; the first failure counts."""
        if self.error is None:
            found = grpc.aio.Metadata(*trailers)
            self.error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), found, details)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailers: Any = ()) -> None:
        """End the call with a status. Always raises."""
        self.fail(code, details, trailers)
        raise grpc.aio.AbortError

    def time_remaining(self) -> float:
        """Return the seconds that the caller waits."""
        return max(0.0, self._deadline - time.monotonic())

    def invocation_metadata(self) -> Metadata:
        """Return the caller's headers."""
        return self._metadata

    def auth_context(self) -> Mapping[str, Any]:
        """Return nothing: without a connection there is no certificate, identity is the token."""
        return {}

    def peer(self) -> str:
        """Return where the caller is: on this machine, with no address that a span could name."""
        return "unix:"


class _Running(ABC):
    """A call from its beginning to its end, however that comes."""

    def __init__(self, handler: Any, context: _Context, data: bytes, deserialize: Any) -> None:
        self._handler = handler
        self._context = context
        self._deserialize = deserialize
        loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if context.error is not None:
            self._ended()
            return
        # An empty context, as a server's: what the caller's task knows stays the caller's.
        self._task = loop.create_task(self._serve(data), context=contextvars.Context())
        self._timer = loop.call_later(context.time_remaining(), self._expire)

    async def _serve(self, data: bytes) -> None:
        try:
            await self._run(self._handler.request_deserializer(data))
        except grpc.aio.AbortError:
            pass  # the context knows
        except asyncio.CancelledError:
            self._context.fail(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
        except Exception as error:  # noqa: BLE001 - gRPC's own answer to what no frame caught
            self._context.fail(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._ended()

    def _behave(self, request: Any) -> Any:
        """Return what the handler gives: an awaitable, or an iterator of a stream."""
        context: Any = self._context  # as much of gRPC's context as is asked for
        return behaviour_of(self._handler)(request, context)

    @abstractmethod
    async def _run(self, request: Any) -> None:
        """Let the handler answer a request, and keep what it gives."""

    @abstractmethod
    def _ended(self) -> None:
        """Tell who waits. May come twice: at the deadline, and when the handler has ended."""

    def _expire(self) -> None:
        self._context.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self.cancel()
        self._ended()  # the caller need not wait until the handler has cleaned up

    def cancel(self) -> bool:
        """Give the call up."""
        return self._task is not None and self._task.cancel()


class _Answer(_Running):
    """A unary call: await it."""

    def __init__(self, *arguments: Any) -> None:
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answer.add_done_callback(self._given_up)
        self._data = b""
        super().__init__(*arguments)

    async def _run(self, request: Any) -> None:
        self._data = await self._behave(request)

    def _ended(self) -> None:
        if self._answer.done():
            return
        if self._context.error is not None:
            self._answer.set_exception(self._context.error)
        else:
            self._answer.set_result(self._deserialize(self._data))

    def _given_up(self, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            self.cancel()
        else:
            answer.exception()  # whoever asks for code() alone has seen it as well

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer.__await__()

    async def code(self) -> grpc.StatusCode:
        """Return the status's code, once the call has ended."""
        await asyncio.wait([self._answer])
        error = self._context.error
        return grpc.StatusCode.OK if error is None else error.code()

    async def details(self) -> str:
        """Return the status's text, once the call has ended."""
        await asyncio.wait([self._answer])
        error = self._context.error
        return "" if error is None else error.details() or ""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back with this call when it has ended."""
        self._answer.add_done_callback(lambda _: callback(self))


class _Answers(_Running):
    """A call with a streamed answer: iterate over it."""

    def __init__(self, *arguments: Any) -> None:
        self._messages: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._over = False
        super().__init__(*arguments)

    async def _run(self, request: Any) -> None:
        async with aclosing(self._behave(request)) as messages:
            async for data in messages:
                self._messages.append(data)
                self._changed.set()
                while len(self._messages) >= _AHEAD:
                    self._changed.clear()
                    await self._changed.wait()

    def _ended(self) -> None:
        self._over = True
        self._changed.set()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._messages:
            if self._over:
                if self._context.error is not None:
                    raise self._context.error
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        data = self._messages.popleft()
        self._changed.set()
        return self._deserialize(data)
