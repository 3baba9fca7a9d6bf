"""Channels to the other services of the mesh.

Each channel proves who we are, passes the caller's deadline on (Python's gRPC does not), limits
message sizes, keeps the connection alive, and leaves retries to the router alone.

It does so around gRPC's calls, not by gRPC's interceptors: those make a task and three objects
for each call, more than all that is done here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from services.chassis import call as calls
from services.chassis import inprocess, telemetry
from services.chassis.identity import TokenFile
from services.chassis.settings import ServiceSettings

Headers = tuple[tuple[str, str], ...]
Spanned = Callable[[Any, grpc.aio.ClientCallDetails, Any], Any]


def message_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Return the options that bound messages, for channels and servers."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]


class Channel(grpc.aio.Channel):
    """What a generated stub needs of a channel: the raw one, with our frame around each call.

    Args:
        raw: The channel; closed with this one.
        default_deadline_s: For calls outside of any call that come without a deadline.
        token: Gives our identity token, if we have one.
    """

    def __init__(
        self, raw: grpc.aio.Channel, default_deadline_s: float, token: Callable[[], str] | None
    ) -> None:
        self._raw = raw
        self._frame = _Frame(default_deadline_s, token)
        self._interceptors = aio_client_interceptors() if telemetry.tracing() else None

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return what makes unary calls of a method."""
        send = self._raw.unary_unary(method, *args, **kwargs)
        return _Calls(method, send, self._frame, self._spans(method, 0, _spanned))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return what makes calls of a method with a streamed answer."""
        send = self._raw.unary_stream(method, *args, **kwargs)
        return _Calls(method, send, self._frame, self._spans(method, 1, _SpannedStream))

    def stream_unary(self, method: str, *_: Any, **__: Any) -> Any:
        """Return something for the stub to hold: no service of the mesh streams requests."""
        return _unsupported(method)

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Any:
        """Return something for the stub to hold: no service of the mesh streams requests."""
        return _unsupported(method)

    def _spans(self, method: str, kind: int, begin: Callable[..., Any]) -> Spanned | None:
        if self._interceptors is None or not telemetry.named_worth_a_span(method):
            return None
        return partial(begin, self._interceptors[kind])

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the connection's state."""
        return self._raw.get_state(try_to_connect)

    async def wait_for_state_change(self, last: grpc.ChannelConnectivity) -> None:
        """Return once the state is another one."""
        await self._raw.wait_for_state_change(last)

    async def channel_ready(self) -> None:
        """Return once there is a connection."""
        await self._raw.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Close the channel; calls in flight have `grace` seconds."""
        await self._raw.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _unsupported(method: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise TypeError(f"{method} streams requests; no service of the mesh does")

    return call


class _Frame:
    """Deadline, identity and trace for one call."""

    def __init__(self, default_s: float, token: Callable[[], str] | None) -> None:
        self._default_s = default_s
        self._token = token

    def timeout(self, asked_s: float | None) -> float:
        """Return the seconds that a call may take: its own, or what its caller has left."""
        call = calls.current()
        if call is None:
            return self._default_s if asked_s is None else asked_s
        left = call.time_left()
        return left if asked_s is None else min(asked_s, left)

    def headers(self, given: Any, *, traced: bool) -> Headers:
        """Return a call's metadata: what was given, who we are, and whose trace it belongs to.

        `traced`: the trace is left to the instrumentation's span.
        """
        out: list[tuple[str, str]] = list(given or ())
        if not traced and not any(key == "traceparent" for key, _ in out):
            out.extend(telemetry.trace_headers())
        if self._token is not None and not any(key == "authorization" for key, _ in out):
            out.append(("authorization", f"Bearer {self._token()}"))
        return tuple(out)


class _TooLate:
    """A call that is not made: sent with no time left, it might still be answered."""

    def __await__(self) -> Generator[Any, None, Any]:
        raise _no_time_left()
        yield

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        raise _no_time_left()

    def cancel(self) -> None:
        """Nothing to give up."""


def _no_time_left() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(),
        details="the caller's time is up; no call was made",
    )


class _Calls:
    """Makes the calls of one method.

    `spanned` begins a call that gets a client span; None: this method's never do. Only calls of
    sampled traces do: they are the dearest spans.
    """

    def __init__(self, method: str, send: Any, frame: _Frame, spanned: Spanned | None) -> None:
        self._method = method
        self._send = send
        self._frame = frame
        self._spanned = spanned

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        wait_for_ready: bool | None = None,
    ) -> Any:
        """Begin a call: await what is returned, or iterate over it."""
        timeout = self._frame.timeout(timeout)
        if timeout <= 0:
            return _TooLate()
        spanned = self._spanned if telemetry.sampled() else None
        headers = self._frame.headers(metadata, traced=spanned is not None)
        if spanned is None:
            return self._send(
                request, timeout=timeout, metadata=headers, wait_for_ready=wait_for_ready
            )
        details = grpc.aio.ClientCallDetails(
            method=self._method,  # type: ignore[arg-type] # the instrumentation takes text
            timeout=timeout,
            metadata=grpc.aio.Metadata(*headers),
            credentials=None,
            wait_for_ready=wait_for_ready,
        )
        return spanned(self._send, details, request)


async def _spanned(
    interceptor: Any, send: Any, details: grpc.aio.ClientCallDetails, request: Any
) -> Any:
    async def begin(details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        return send(request, **_arguments(details))

    return await (await interceptor.intercept_unary_unary(begin, details, request))


class _SpannedStream:
    """A call with a streamed answer, and a span around it."""

    def __init__(
        self, interceptor: Any, send: Any, details: grpc.aio.ClientCallDetails, request: Any
    ) -> None:
        self._interceptor = interceptor
        self._send = send
        self._details = details
        self._request = request
        self._call: Any = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        async def begin(details: grpc.aio.ClientCallDetails, request: Any) -> Any:
            self._call = self._send(request, **_arguments(details))
            return self._call

        intercept = self._interceptor.intercept_unary_stream
        messages = await intercept(begin, self._details, self._request)
        async with aclosing(messages):
            async for message in messages:
                yield message

    def cancel(self) -> None:
        """Give the call up."""
        if self._call is not None:
            self._call.cancel()


def _arguments(details: grpc.aio.ClientCallDetails) -> Mapping[str, Any]:
    return {
        "timeout": details.timeout,
        "metadata": details.metadata,
        "wait_for_ready": details.wait_for_ready,
    }


def connect(target: str, settings: ServiceSettings) -> Channel:
    """Return a channel to another service of the mesh. The caller closes it.

    Calls of a service that is hosted in this process don't leave it.
    """
    token = TokenFile(settings.token_file).token if settings.token_file else None
    here = inprocess.at(target)
    raw: Any
    if here is not None:
        raw = inprocess.InProcessChannel(here, settings.max_message_bytes)
    else:
        raw = _raw(target, settings)
    return Channel(raw, settings.default_deadline_s, token)


def _raw(target: str, settings: ServiceSettings) -> grpc.aio.Channel:
    options: list[tuple[str, Any]] = [
        *message_options(settings.max_message_bytes),
        ("grpc.enable_retries", 0),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 20_000),  # a machine under load is slow, not dead
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if settings.tls_cert and settings.tls_key and settings.tls_ca:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=settings.tls_ca.read_bytes(),
            private_key=settings.tls_key.read_bytes(),
            certificate_chain=settings.tls_cert.read_bytes(),
        )
        return grpc.aio.secure_channel(target, credentials, options=options)
    return grpc.aio.insecure_channel(target, options=options)
