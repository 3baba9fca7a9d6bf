"""What stands around every handler, in this order, outermost first:

1. telemetry   the span must cover all the rest (OpenTelemetry's own interceptor);
2. boundary    counts, times, logs; turns every exception into google.rpc.Status;
3. identity    who calls, and may they: nothing about the request is looked at before;
4. deadline    refuses what comes too late, and remembers until when this call may take;
5. validation  the contract's rules on the message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_status import rpc_status

from services.chassis import call as calls
from services.chassis import metrics, validation
from services.chassis.call import Call, Identity
from services.chassis.errors import (
    DeadlineExceededError,
    ServiceError,
    UnauthenticatedError,
    from_rpc_error,
    to_status,
)
from services.chassis.identity import AccessTable, TokenVerifier, certificate_subject

log = logging.getLogger(__name__)

Details = grpc.HandlerCallDetails
Continuation = Callable[[Details], Awaitable[grpc.RpcMethodHandler]]
_FRAME_METHODS = ("/grpc.reflection.", "/grpc.health.")


def _wrap(handler: Any, unary: Any, stream: Any) -> Any:
    """Return the handler with its behaviour wrapped; `unary` and `stream` take the behaviour."""
    if handler.request_streaming:
        return handler  # only reflection; it has no message of ours
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            stream(handler.unary_stream),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
    return grpc.unary_unary_rpc_method_handler(
        unary(handler.unary_unary),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


async def _abort(context: grpc.aio.ServicerContext, error: ServiceError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


def _as_service_error(error: Exception, method: str) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    log.error("unexpected error", extra={"method": method}, exc_info=error)
    return ServiceError("INTERNAL", "internal error; the service's log has the details")


class Boundary(grpc.aio.ServerInterceptor):
    """Counts, times and logs calls, and turns exceptions into google.rpc.Status."""

    async def intercept_service(  # type: ignore[override]
        self, continuation: Continuation, handler_call_details: Details
    ) -> Any:
        """Wrap the handler."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_FRAME_METHODS):
            return handler

        def unary(inner: Any) -> Any:
            async def serve(request: Message, context: grpc.aio.ServicerContext) -> Any:
                with _Meter(method) as meter:
                    try:
                        return await inner(request, context)
                    except asyncio.CancelledError:
                        meter.code = "CANCELLED"
                        raise
                    except grpc.aio.AbortError:
                        raise
                    except Exception as error:  # noqa: BLE001 - the boundary sees everything
                        found = _as_service_error(error, method)
                        meter.failed(found)
                        await _abort(context, found)

            return serve

        def stream(inner: Any) -> Any:
            async def serve(
                request: Message, context: grpc.aio.ServicerContext
            ) -> AsyncIterator[Any]:
                with _Meter(method) as meter:
                    try:
                        async for response in inner(request, context):
                            yield response
                    except (asyncio.CancelledError, GeneratorExit):
                        meter.code = "CANCELLED"
                        raise
                    except grpc.aio.AbortError:
                        raise
                    except Exception as error:  # noqa: BLE001 - the boundary sees everything
                        found = _as_service_error(error, method)
                        meter.failed(found)
                        await _abort(context, found)

            return serve

        return _wrap(handler, unary, stream)


class _Meter:
    """Counts and times one call."""

    def __init__(self, method: str) -> None:
        self._method = method
        self.code = "OK"

    def failed(self, error: ServiceError) -> None:
        self.code = error.code.name
        level = logging.ERROR if error.code is grpc.StatusCode.INTERNAL else logging.INFO
        log.log(
            level,
            "call failed",
            extra={"method": self._method, "code": self.code, "reason": error.reason},
        )

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        metrics.IN_FLIGHT.labels(self._method).inc()
        return self

    def __exit__(self, *_: object) -> None:
        metrics.IN_FLIGHT.labels(self._method).dec()
        metrics.CALLS.labels(self._method, self.code).inc()
        metrics.DURATION.labels(self._method).observe(time.perf_counter() - self._start)


class Door(grpc.aio.ServerInterceptor):
    """Identity, deadline and validation: what must hold before a handler sees a request.

    One interceptor for the three, because each layer of Python costs every call; their order is
    the order of the statements in `_enter`.
    """

    def __init__(
        self, verifier: TokenVerifier, table: AccessTable, default_deadline_s: float
    ) -> None:
        self._verifier = verifier
        self._table = table
        self._default = default_deadline_s

    async def intercept_service(  # type: ignore[override]
        self, continuation: Continuation, handler_call_details: Details
    ) -> Any:
        """Wrap the handler."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or (handler.request_streaming and self._table.open_to_all(method)):
            return handler
        token = ""
        for key, value in handler_call_details.invocation_metadata:
            if key == "authorization":
                token = value if isinstance(value, str) else value.decode(errors="replace")

        def unary(inner: Any) -> Any:
            async def serve(request: Message, context: grpc.aio.ServicerContext) -> Any:
                self._enter(method, token, request, context)
                return await inner(request, context)

            return serve

        def stream(inner: Any) -> Any:
            async def serve(
                request: Message, context: grpc.aio.ServicerContext
            ) -> AsyncIterator[Any]:
                self._enter(method, token, request, context)
                async for response in inner(request, context):
                    yield response

            return serve

        return _wrap(handler, unary, stream)

    def _enter(
        self, method: str, token: str, request: Message, context: grpc.aio.ServicerContext
    ) -> None:
        identity = self._authenticate(method, token, context)
        left = context.time_remaining()
        left = self._default if left is None else left
        if left <= 0:
            raise DeadlineExceededError("DEADLINE_EXCEEDED", "the caller's time is up")
        calls.enter(Call(method, identity, time.monotonic() + left))
        validation.check(request)

    def _authenticate(self, method: str, token: str, context: grpc.aio.ServicerContext) -> Identity:
        if self._table.open_to_all(method):
            return Identity("anyone")
        if token:
            if not token.startswith("Bearer "):
                raise UnauthenticatedError("TOKEN_INVALID", "authorization is no bearer token")
            identity = self._verifier.verify(token[7:])
        else:
            subject = certificate_subject(context.auth_context())
            if subject is None:
                raise UnauthenticatedError("TOKEN_MISSING", "no identity came with the call")
            identity = Identity(subject)
        self._table.check(method, identity)
        return identity
