"""Channels to the other services of the mesh.

Each channel proves who we are, passes the caller's deadline on (Python's gRPC does not), limits
message sizes, keeps the connection alive, and leaves retries to the router alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from services.chassis import call as calls
from services.chassis import telemetry
from services.chassis.identity import TokenFile
from services.chassis.settings import ServiceSettings


def message_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Return the options that bound messages, for channels and servers."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]


def _with_deadline(
    details: grpc.aio.ClientCallDetails, default_s: float, token: Callable[[], str] | None
) -> grpc.aio.ClientCallDetails:
    call = calls.current()
    timeout = details.timeout
    if call is not None:
        left = call.time_left()
        if left <= 0:
            # Not left to gRPC: a call sent with no time left may still be answered.
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                details="the caller's time is up; no call was made",
            )
        timeout = left if timeout is None else min(timeout, left)
    elif timeout is None:
        timeout = default_s
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    if metadata.get("traceparent") is None:
        # This process doesn't trace: hand the caller's context on as it came.
        item = telemetry.inject()
        if item is not None:
            metadata.add("traceparent", item.traceparent)
            if item.tracestate:
                metadata.add("tracestate", item.tracestate)
    if token is not None and metadata.get("authorization") is None:
        metadata.add("authorization", f"Bearer {token()}")
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=timeout,
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )


class _UnaryFrame(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds deadline and identity to unary calls."""

    def __init__(self, default_s: float, token: Callable[[], str] | None) -> None:
        self._default_s = default_s
        self._token = token

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        details = _with_deadline(client_call_details, self._default_s, self._token)
        return await continuation(details, request)


class _StreamFrame(grpc.aio.UnaryStreamClientInterceptor):
    """Adds deadline and identity to calls with streamed answers."""

    def __init__(self, default_s: float, token: Callable[[], str] | None) -> None:
        self._default_s = default_s
        self._token = token

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        details = _with_deadline(client_call_details, self._default_s, self._token)
        return await continuation(details, request)


def client_interceptors(
    token: Callable[[], str] | None, default_deadline_s: float
) -> Sequence[grpc.aio.ClientInterceptor]:
    """Return the client's interceptors, outermost first.

    1. telemetry: its span must cover all the rest;
    2. frame: deadline and identity, last before the wire.
    """
    traced = []
    if telemetry.tracing():
        traced = list(aio_client_interceptors(filter_=telemetry.worth_a_span))
    return [
        *traced,
        _UnaryFrame(default_deadline_s, token),
        _StreamFrame(default_deadline_s, token),
    ]


def connect(target: str, settings: ServiceSettings) -> grpc.aio.Channel:
    """Return a channel to another service of the mesh. The caller closes it."""
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
    token = TokenFile(settings.token_file).token if settings.token_file else None
    interceptors = client_interceptors(token, settings.default_deadline_s)
    if settings.tls_cert and settings.tls_key and settings.tls_ca:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=settings.tls_ca.read_bytes(),
            private_key=settings.tls_key.read_bytes(),
            certificate_chain=settings.tls_cert.read_bytes(),
        )
        return grpc.aio.secure_channel(
            target, credentials, options=options, interceptors=interceptors
        )
    return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
