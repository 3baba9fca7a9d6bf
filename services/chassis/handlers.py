"""Handlers as gRPC knows them: taken from servicers, wrapped once, found by their method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio

Behaviour = Callable[[Any, grpc.aio.ServicerContext], Any]

# (request is streamed, response is streamed) -> the handler's attribute and its constructor
_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
_SAME: Any = object()


def _kind(handler: Any) -> tuple[str, Callable[..., Any]]:
    return _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]


def behaviour_of(handler: Any) -> Behaviour:
    """Return what a handler does with a call."""
    found: Behaviour = getattr(handler, _kind(handler)[0])
    return found


def rewrap(
    handler: Any,
    *,
    one: Callable[[Behaviour], Behaviour],
    many: Callable[[Behaviour], Behaviour],
    parse: Any = _SAME,
    serialize: Any = _SAME,
) -> Any:
    """Return the handler with its behaviour wrapped: by `one` for one response, else by `many`."""
    wrap = many if handler.response_streaming else one
    return _kind(handler)[1](
        wrap(behaviour_of(handler)),
        request_deserializer=handler.request_deserializer if parse is _SAME else parse,
        response_serializer=handler.response_serializer if serialize is _SAME else serialize,
    )


class Handlers(grpc.GenericRpcHandler):
    """What a server serves; stands in for the server where generated code adds its servicers.

    gRPC's interceptors wrap a handler anew for each call. Here each is wrapped once, and what
    could not be wrapped could not be mounted: nothing gets around the frame.
    """

    def __init__(self) -> None:
        self._raw: dict[str, Any] = {}
        self._wrapped: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignore these: generated code adds each method by its name as well."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Take a service's handlers."""
        for name, handler in handlers.items():
            self._raw[f"/{service}/{name}"] = handler

    async def wrap(self, wrap: Callable[[str, Any], Awaitable[Any]]) -> None:
        """Wrap every handler that was added."""
        for method, handler in self._raw.items():
            self._wrapped[method] = await wrap(method, handler)

    def service(self, details: Any) -> Any:
        """Return a method's handler; None, and gRPC answers UNIMPLEMENTED."""
        return self._wrapped.get(details.method)
