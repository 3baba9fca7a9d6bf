"""The stand-in's Open Inference Protocol over gRPC, with the faults that fit it."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.standin.engine import UnknownModelError
from services.standin.oip import BadRequestError
from services.standin.tensors import DATATYPES, BadTensorError, Tensor, from_raw

if TYPE_CHECKING:
    from services.standin.faults import Fault
    from services.standin.server import Public

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# As gateways translate statuses, for faults that name one and no code.
_OF_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GrpcSide(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves the same models as the HTTP side, and counts in the same ledger.

    A fault of kind `error` answers with the gRPC code whose number is its `code`, or with the one
    that gateways make of its `status`. Of `rate_limit` a time in seconds goes as RetryInfo, an HTTP
    date as metadata, as proxies do.
    """

    def __init__(self, public: Public) -> None:
        self._public = public

    async def ServerLive(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        """It is."""
        del request, context
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        """It is."""
        del request, context
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        """Run a model; every mistake has its code."""
        given = {k: str(v) for k, v in context.invocation_metadata() or ()}
        ledger = self._public.ledger
        entry = ledger.arrive(time.time(), "POST", "/grpc/ModelInfer", given)
        entry.model = request.model_name
        ledger.keep(entry, request.SerializeToString(deterministic=True))
        status, size = 499, 0
        try:
            reply = await self._answer(request, context, str(given.get("authorization", "")))
            status, size = 200, reply.ByteSize()
        finally:
            ledger.finish(entry, status, size)
        return reply

    async def _answer(self, request: Any, context: grpc.aio.ServicerContext, shown: str) -> Any:
        fault = self._public.schedule.draw(request.model_name)
        kind = None if fault is None else fault.kind
        if fault is not None and kind == "error":
            unknown = grpc.StatusCode.UNKNOWN
            code = _CODES[int(fault.code)] if fault.code else _OF_STATUS.get(fault.status, unknown)
            await context.abort(code, fault.message)
        if fault is not None and kind == "rate_limit":
            await _limit(context, fault)
        if fault is not None and kind in ("hang", "slow"):
            await asyncio.sleep(fault.delay_ms / 1000)
        settings = self._public.settings
        if _is(shown, settings.limited_bearer):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this token may not infer")
        if not _is(shown, settings.bearer):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a valid token is needed")
        try:
            version, model = self._public.engine.find(
                request.model_name, request.model_version or None
            )
            outputs = await self._public.engine.run(model, _inputs(request))
        except UnknownModelError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except (BadRequestError, BadTensorError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if kind == "version_drift" and fault is not None:
            version = fault.version
        reply = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=version)
        for tensor in outputs:
            name = "unasked" if kind == "wrong_outputs" else tensor.name
            reply.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
            reply.raw_output_contents.append(b"" if kind == "truncated" else tensor.raw)
        return reply


async def _limit(context: grpc.aio.ServicerContext, fault: Fault) -> None:
    wait = fault.retry_after or ""
    status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="too many")
    if wait.isdecimal():
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(int(wait))
        status.details.add().Pack(retry)
    elif wait:
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "too many",
            trailing_metadata=(("retry-after", wait),),
        )
    await context.abort_with_status(rpc_status.to_status(status))


def _is(shown: str, bearer: str | None) -> bool:
    right = f"Bearer {bearer}"
    return bearer is not None and hmac.compare_digest(shown.encode(), right.encode())


async def serve(public: Public, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Start it; returns the server and its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcSide(public), server)
    port = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    return server, port


def _inputs(request: Any) -> tuple[Tensor, ...]:
    if len(request.raw_input_contents) != len(request.inputs):
        raise BadRequestError("raw_input_contents must have one entry for each input")
    found = []
    for described, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if described.datatype not in DATATYPES:
            raise BadRequestError(f"unknown datatype {described.datatype!r}")
        found.append(from_raw(described.name, described.datatype, tuple(described.shape), raw))
    return tuple(found)
