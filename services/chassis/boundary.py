"""The boundary around every handler: counts, times, logs; makes a google.rpc.Status of exceptions.

What stands around a handler, in this order, outermost first:

1. telemetry   the span must cover all the rest (server_spans.py);
2. boundary    this file;
3. identity    who calls, and may they: nothing about the request is looked at before;
4. deadline    refuses what comes too late, and remembers until when this call may take;
5. validation  the contract's rules on the message.

3 to 5 are `Door`, in door.py: each layer of Python costs every call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Self

import grpc
import grpc.aio
from grpc_status import rpc_status

from services.chassis import metrics, telemetry
from services.chassis.errors import (
    InternalError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
    from_rpc_error,
    to_status,
)
from services.chassis.handlers import Behaviour, rewrap

log = logging.getLogger(__name__)

_FRAME_METHODS = ("/grpc.reflection.", "/grpc.health.")


async def _abort(context: grpc.aio.ServicerContext, error: ServiceError) -> None:
    status = rpc_status.to_status(to_status(error))
    telemetry.note_failure(status.code, status.details)
    await context.abort(status.code, status.details, status.trailing_metadata)


def _as_service_error(error: BaseException, method: str) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    if isinstance(error, asyncio.CancelledError):
        # Nobody cancelled this call: what it waited for was cancelled, at a shutdown for one.
        # Passed on as it is, gRPC would answer nothing, and the caller would wait in vain.
        return UnavailableError("WORK_CANCELLED", "the work for this call was given up")
    log.error("unexpected error", extra={"method": method}, exc_info=error)
    return InternalError("INTERNAL", "internal error; the service's log has the details")


def _call_is_over(error: BaseException) -> bool:
    """Tell whether an exception means that the call itself was ended, by the caller or gRPC."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, GeneratorExit)


class Boundary:
    """Counts, times and logs calls, and turns exceptions into google.rpc.Status.

    It serializes the responses too, so that one that can't be sent gets a clear status as well.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._max = max_message_bytes

    def wrap(self, method: str, handler: Any) -> Any:
        """Return a method's handler with the boundary around it."""
        serializer = handler.response_serializer or bytes
        series = _Series(method)

        def encode(response: Any) -> bytes:
            data: bytes = serializer(response)
            if len(data) > self._max:
                raise ResourceExhaustedError(
                    "RESPONSE_TOO_LARGE",
                    f"the response has {len(data)} bytes; {self._max} are allowed",
                )
            return data

        def one(inner: Behaviour) -> Behaviour:
            async def serve(request: Any, context: grpc.aio.ServicerContext) -> Any:
                with _Meter(series) as meter:
                    try:
                        return encode(await inner(request, context))
                    except BaseException as error:  # noqa: BLE001 - the boundary sees everything
                        await meter.settle(error, context)

            return serve

        def many(inner: Behaviour) -> Behaviour:
            async def serve(
                request: Any, context: grpc.aio.ServicerContext
            ) -> AsyncIterator[bytes]:
                with _Meter(series) as meter:
                    try:
                        async with aclosing(inner(request, context)) as responses:
                            async for response in responses:
                                yield encode(response)
                    except BaseException as error:  # noqa: BLE001 - the boundary sees everything
                        await meter.settle(error, context)

            return serve

        return rewrap(handler, one=one, many=many, serialize=None)


class _Series:
    """One method's series, looked up once. Health and reflection don't count."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.counts = not method.startswith(_FRAME_METHODS)
        if self.counts:
            self.in_flight = metrics.IN_FLIGHT.labels(method)
            self.duration = metrics.DURATION.labels(method)
        self._calls: dict[str, Any] = {}

    def calls(self, code: str) -> Any:
        """Return the counter of calls that ended with a code."""
        found = self._calls.get(code)
        if found is None:
            found = self._calls[code] = metrics.CALLS.labels(self.method, code)
        return found


class _Meter:
    """Counts and times one call, and answers its failure."""

    def __init__(self, series: _Series) -> None:
        self._series = series
        self._code = "OK"

    async def settle(self, error: BaseException, context: grpc.aio.ServicerContext) -> None:
        """Answer the call with the status of an exception. Always raises."""
        if _call_is_over(error):
            self._code = "CANCELLED"
            raise error
        if isinstance(error, grpc.aio.AbortError):
            self._code = "ABORTED_BY_HANDLER"
            raise error
        if not isinstance(error, (Exception, asyncio.CancelledError)):
            raise error
        found = _as_service_error(error, self._series.method)
        self._code = found.code.name
        level = logging.ERROR if found.code is grpc.StatusCode.INTERNAL else logging.INFO
        log.log(
            level,
            "call failed",
            extra={"method": self._series.method, "code": self._code, "reason": found.reason},
        )
        await _abort(context, found)

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        if self._series.counts:
            self._series.in_flight.inc()
        return self

    def __exit__(self, *_: object) -> None:
        if self._series.counts:
            self._series.in_flight.dec()
            self._series.calls(self._code).inc()
            seconds = time.perf_counter() - self._start
            self._series.duration.observe(seconds, telemetry.exemplar())
