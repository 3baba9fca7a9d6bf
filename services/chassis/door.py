"""The door: what must hold before a handler sees a request. See boundary.py for the order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from services.chassis import call as calls
from services.chassis import validation
from services.chassis.call import Call, Identity
from services.chassis.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    UnauthenticatedError,
)
from services.chassis.handlers import Behaviour, rewrap
from services.chassis.identity import SERVICE, AccessTable, TokenVerifier, certificate_subject

_ANYONE = Identity("anyone")


class _Malformed:
    """Stands for a request whose bytes are no message of its type."""


_MALFORMED = _Malformed()


def _lenient(parse: Callable[[bytes], Message] | None) -> Callable[[bytes], Any]:
    """Return a parser that does not raise: gRPC would answer UNKNOWN, with the parser's text."""

    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data) if parse is not None else data
        except (DecodeError, ValueError):
            return _MALFORMED

    return parse_or_mark


def _check(request: Any) -> None:
    if request is _MALFORMED:
        raise InvalidArgumentError("MESSAGE_MALFORMED", "the bytes are no message of this method")
    if isinstance(request, Message):
        validation.check(request)


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        _check(request)
        yield request


@asynccontextmanager
async def _limited(until: float) -> AsyncIterator[None]:
    """End the work at a time on time.monotonic()'s scale, as gRPC does for the caller's own."""
    try:
        async with asyncio.timeout(until - time.monotonic()) as scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise DeadlineExceededError(
                "DEADLINE_EXCEEDED", "the call came without a deadline and took too long"
            ) from None
        raise


async def _until(responses: AsyncIterator[Any], until: float) -> AsyncIterator[Any]:
    while True:
        async with _limited(until):
            try:
                response = await anext(responses)
            except StopAsyncIteration:
                return
        yield response


class Door:
    """Identity, deadline and validation, in the order of the statements in `_enter`."""

    def __init__(
        self,
        verifier: TokenVerifier,
        table: AccessTable,
        default_deadline_s: float,
        *,
        certificates: bool,
    ) -> None:
        self._verifier = verifier
        self._table = table
        self._default = default_deadline_s
        self._certificates = certificates

    def wrap(self, method: str, handler: Any) -> Any:
        """Return a method's handler with the door before it."""
        open_to_all = self._table.open_to_all(method)
        streamed = bool(handler.request_streaming)

        def enter(request: Any, context: grpc.aio.ServicerContext) -> tuple[Any, float | None]:
            limit = self._enter(method, context, open_to_all=open_to_all)
            if streamed:
                return _checked(request), limit
            _check(request)
            return request, limit

        def one(inner: Behaviour) -> Behaviour:
            async def serve(request: Any, context: grpc.aio.ServicerContext) -> Any:
                request, limit = enter(request, context)
                if limit is None:
                    return await inner(request, context)
                async with _limited(time.monotonic() + limit):
                    return await inner(request, context)

            return serve

        def many(inner: Behaviour) -> Behaviour:
            async def serve(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
                request, limit = enter(request, context)
                async with aclosing(inner(request, context)) as responses:
                    source = responses
                    if limit is not None:
                        source = _until(responses, time.monotonic() + limit)
                    async for response in source:
                        yield response

            return serve

        return rewrap(handler, one=one, many=many, parse=_lenient(handler.request_deserializer))

    def _enter(
        self, method: str, context: grpc.aio.ServicerContext, *, open_to_all: bool
    ) -> float | None:
        """Let the call in, or raise. Return the seconds it may take if the caller did not say."""
        identity = _ANYONE if open_to_all else self._authenticate(method, context)
        left = context.time_remaining()
        limit = None
        if left is None:
            left = self._default
            # What is open to all, such as a health watch, may last.
            limit = None if open_to_all else left
        if left <= 0:
            raise DeadlineExceededError("DEADLINE_EXCEEDED", "the caller's time is up")
        calls.enter(Call(method, identity, time.monotonic() + left))
        return limit

    def _authenticate(self, method: str, context: grpc.aio.ServicerContext) -> Identity:
        sent: Any = context.invocation_metadata() or ()
        token = next((value for key, value in sent if key == "authorization"), "")
        # Reading the peer's certificate costs something; without TLS there is none.
        peer = context.auth_context() if self._certificates else {}
        certified = certificate_subject(peer)
        if token:
            if isinstance(token, bytes) or not token.startswith("Bearer "):
                raise UnauthenticatedError("TOKEN_INVALID", "authorization is no bearer token")
            identity = self._verifier.verify(token[7:])
            secured = b"ssl" in peer.get("transport_security_type", ())
            if secured and certified != identity.subject and identity.subject.startswith(SERVICE):
                # With mTLS a stolen token alone does not make anyone a service.
                raise UnauthenticatedError(
                    "IDENTITY_MISMATCH", "the token names another service than the certificate"
                )
        elif certified is not None:
            identity = Identity(certified)
        else:
            raise UnauthenticatedError("TOKEN_MISSING", "no identity came with the call")
        self._table.check(method, identity)
        return identity
