"""The Open Inference Protocol v2 over gRPC (KServe, MLServer, Seldon, Triton elsewhere).

The base URL is `https://host:port` (TLS) or, on this machine, `http://host:port`. The messages
are tritonclient's: there must be one package called `inference` in a process, and it owns it.
An answer comes whole, so the time to its first byte is all that can be seen of a silent server.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError, from_rpc_error
from services.remote import failures, tracing
from services.remote.catalog import Model, Options, Provider
from services.remote.credentials import Credentials
from services.remote.http_vendor import usable_s
from services.remote.prices import day_of, guess_tokens, price_on
from services.remote.provider import Answer, Ask, Tensors, no_stream
from services.remote.tensor_fit import violations
from services.remote.vendor_pace import Pace
from services.remote.wire import AnswerError, Usage
from services.remote.yaml_lines import Mistake
from twinpath.common.v1 import decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

RENDERER = "oip-grpc/1"
_SERVICE = "/inference.GRPCInferenceService/"
_FAILURES: dict[grpc.StatusCode, failures.Failure] = {
    grpc.StatusCode.INVALID_ARGUMENT: failures.HTTP[400],
    grpc.StatusCode.OUT_OF_RANGE: failures.HTTP[400],
    grpc.StatusCode.UNAUTHENTICATED: failures.HTTP[401],
    grpc.StatusCode.PERMISSION_DENIED: failures.HTTP[403],
    grpc.StatusCode.NOT_FOUND: failures.HTTP[404],
    grpc.StatusCode.ABORTED: failures.HTTP[409],
    grpc.StatusCode.ALREADY_EXISTS: failures.HTTP[409],
    grpc.StatusCode.FAILED_PRECONDITION: failures.REFUSED_REQUEST,
    grpc.StatusCode.RESOURCE_EXHAUSTED: failures.HTTP[429],
    grpc.StatusCode.UNKNOWN: failures.HTTP[500],
    grpc.StatusCode.INTERNAL: failures.HTTP[500],
    grpc.StatusCode.DATA_LOSS: failures.ANSWER_INVALID,
    grpc.StatusCode.UNIMPLEMENTED: failures.HTTP[501],
    grpc.StatusCode.UNAVAILABLE: failures.HTTP[503],
    grpc.StatusCode.DEADLINE_EXCEEDED: failures.TIMEOUT,
    grpc.StatusCode.CANCELLED: failures.LOST,
}
# These may be gRPC's own: nothing tells whether the server did its work, so it may bill it.
UNTOLD = frozenset(
    {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
    }
)
_READY, _FAILED = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
# Why there is no connection, or none any more, is said by gRPC's own text alone.
_UNREACHABLE = {
    "errors resolving": failures.DNS,
    "resolution failed": failures.DNS,
    "handshake": failures.TLS,
    "Verification": failures.TLS,
    "not in peer certificate": failures.TLS,
    "imed out": failures.CONNECT_TIMEOUT,
    "imeout occurred": failures.CONNECT_TIMEOUT,
}
_BROKEN = ("Socket closed", "Connection reset", "Stream removed")
_LOOK_S = 0.1
_MAX_BACKOFF_MS = 500
# What a provider file can say that has no meaning here.
_NO_EFFECT = ("query", "cost_header", "probe_path", "max_connections")


class ModelOptions(Options):
    """None."""


class ProviderOptions(Options):
    """None."""


def check_provider(provider: Provider) -> Iterator[Mistake]:
    """Yield what this adapter can't do that HTTP's can: no key stands there without effect."""
    for key in _NO_EFFECT:
        if key in provider.model_fields_set:
            yield (key,), "has no effect over gRPC"
    if provider.encoding != "binary":
        yield ("encoding",), "over gRPC tensors go as raw bytes"
    if urlsplit(provider.base_url).path.strip("/"):
        yield ("base_url",), "over gRPC there is no path behind host and port"


def make(provider: Provider, clock: Clock, max_answer_bytes: int) -> OipGrpc:
    """Return the adapter."""
    return OipGrpc(provider, clock, max_answer_bytes)


class OipGrpc:
    """See `provider.Adapter`. Messages go as bytes, so that what is digested is what leaves."""

    def __init__(self, provider: Provider, clock: Clock, max_answer_bytes: int) -> None:
        self._provider = provider
        self._clock = clock
        self._session = aiohttp.ClientSession()  # for token servers, which speak HTTP
        self._credentials = Credentials(provider, None, clock, self._session)
        self._pace = Pace(provider, clock)
        url = urlsplit(provider.base_url)
        secure = url.scheme == "https"
        target = f"{url.hostname}:{url.port or (443 if secure else 80)}"
        self._target = target
        options = [
            ("grpc.max_receive_message_length", max_answer_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", _MAX_BACKOFF_MS),
            ("grpc.min_reconnect_backoff_ms", int(provider.connect_timeout_s * 1000)),
        ]
        roots = provider.ca_file.read_bytes() if provider.ca_file else None
        self._channel = (
            grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
            if secure
            else grpc.aio.insecure_channel(target, options)
        )
        self._infer: Any = self._channel.unary_unary(_SERVICE + "ModelInfer")
        self._ready: Any = self._channel.unary_unary(_SERVICE + "ServerReady")

    def streams(self, model: Model) -> bool:
        """Never: the protocol has no stream that all servers share."""
        del model
        return False

    def longest_answer(self, model: Model) -> int:
        """None: tokens out are not what is counted here."""
        del model
        return 0

    async def infer(self, ask: Ask, metering: inference_pb2.Metering) -> Answer:
        """See `Adapter`."""
        self._pace.check(ask.model)
        content = _render(ask)
        deadline = self._clock.monotonic() + min(
            usable_s(ask.time_left_s), self._provider.timeout_s
        )
        metadata = [*ask.headers.items(), *await self._metadata(ask.model, deadline)]
        tracing.asking_grpc(_SERVICE + "ModelInfer", self._target)
        await self._connected(deadline)
        metering.sent = True
        metering.bytes_out = len(content)
        metering.wire_digest = hashlib.sha256(content).digest()
        metering.renderer_version = RENDERER
        left = max(0.001, deadline - self._clock.monotonic())
        silence = min(left, self._provider.first_byte_s)
        try:
            reply = await self._infer(content, metadata=metadata, timeout=silence)
        except grpc.aio.AioRpcError as error:
            tracing.answered_grpc(error.code().value[0])
            if error.code() in UNTOLD:
                self._bill(ask.model, metering)
            if (
                error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                and silence < left
                and self._clock.monotonic() >= deadline - left + silence
            ):
                raise failures.SILENT.error(self._provider.name) from None
            raise self._of(ask.model, error) from None
        except asyncio.CancelledError:
            self._bill(ask.model, metering)
            raise
        tracing.answered_grpc(0)
        metering.bytes_in = len(reply)
        self._bill(ask.model, metering)
        try:
            version, outputs = _parse(reply)
        except AnswerError as error:
            raise failures.ANSWER_INVALID.error(self._provider.name, rule=error.rule) from None
        metering.reported_version = version[:128]
        if violations(outputs, ask.model.outputs, "outputs"):
            raise failures.OUTPUT_MISMATCH.error(self._provider.name)
        return Answer(outputs)

    async def stream(
        self, ask: Ask, metering: inference_pb2.Metering
    ) -> AsyncGenerator[Tensors | Answer, None]:
        """Never called: see `streams`."""
        del metering
        no_stream(ask)
        yield ()  # makes this a generator

    async def probe(self, time_left_s: float) -> None:
        """See `Adapter`."""
        self._credentials.watch_expiry()
        deadline = self._clock.monotonic() + time_left_s
        metadata = await self._metadata(None, deadline)
        await self._connected(deadline)
        left = max(0.001, deadline - self._clock.monotonic())
        try:
            reply = await self._ready(b"", metadata=metadata, timeout=left)
            ready = service_pb2.ServerReadyResponse.FromString(reply).ready
        except grpc.aio.AioRpcError as error:
            raise self._of(None, error) from None
        except DecodeError:
            ready = False
        if not ready:
            raise failures.HTTP[503].error(self._provider.name)

    async def aclose(self) -> None:
        """See `Adapter`."""
        await self._credentials.aclose()
        await self._session.close()
        await self._channel.close()

    async def _metadata(self, model: Model | None, deadline: float) -> list[tuple[str, str]]:
        """Return what says who we are, and what the provider file adds."""
        left = max(0.001, deadline - self._clock.monotonic())
        shown = self._credentials.shown(await self._credentials.token(model, left))
        named = [*self._provider.headers.items(), shown]
        return [(name.lower(), value) for name, value in named]

    async def _connected(self, deadline: float) -> None:
        """Wait for a connection: what fails before there is one has sent nothing."""
        state = self._channel.get_state(try_to_connect=True)
        if state is _READY:
            return
        left = min(deadline - self._clock.monotonic(), self._provider.connect_timeout_s)
        try:
            async with asyncio.timeout(left):
                while state not in (_READY, _FAILED):
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise failures.CONNECT_TIMEOUT.error(self._provider.name) from None
        if state is _FAILED:
            raise await self._unreachable()

    async def _unreachable(self) -> ServiceError:
        """Return why the last try to connect failed; a call without content is told by gRPC."""
        text = ""
        try:
            await self._ready(b"", timeout=_LOOK_S)
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
        for mark, failure in _UNREACHABLE.items():
            if mark in text:
                return failure.error(self._provider.name)
        return failures.REFUSED.error(self._provider.name)

    def _of(self, model: Model | None, error: grpc.aio.AioRpcError) -> ServiceError:
        code, wait = error.code(), None
        failure = _FAILURES.get(code, failures.HTTP[500])
        if code is grpc.StatusCode.UNAUTHENTICATED and model is not None:
            self._credentials.rejected(model)
        if code is grpc.StatusCode.UNAVAILABLE and any(
            mark in (error.details() or "") for mark in _BROKEN
        ):
            failure = failures.LOST
        elif code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
            wait = _wait_s(error, self._clock.unix_us() / 1e6)
            if model is not None:
                self._pace.hold(model, wait or 0.0)
        return failure.error(self._provider.name, retry_after=wait, grpc_code=code.name)

    def _bill(self, model: Model, metering: inference_pb2.Metering) -> None:
        price = price_on(model.price, day_of(self._clock.unix_us()))
        if price is not None:
            metering.cost.currency_code = "USD"
            usage = Usage(guess_tokens(metering.bytes_out), guess_tokens(metering.bytes_in))
            metering.cost.nanos = price.nanos(usage, metering.bytes_out, metering.bytes_in)
            metering.cost.basis = decision_pb2.COST_BASIS_ESTIMATED


def _wait_s(error: grpc.aio.AioRpcError, now_unix_s: float) -> float | None:
    """Return the seconds to wait that a server (RetryInfo) or a proxy (`retry-after`) asks for."""
    said = from_rpc_error(error).retry_after
    if said is not None:
        return min(max(said, 0.0), failures.LONGEST_WAIT_S)
    metadata = dict(error.trailing_metadata() or ())
    value = metadata.get("retry-after")
    return failures.retry_after(value if isinstance(value, str) else None, now_unix_s)


def _render(ask: Ask) -> bytes:
    """Write a request with raw contents: the very bytes that were digested."""
    request = service_pb2.ModelInferRequest(
        model_name=ask.model.on_wire, model_version=ask.model.version
    )
    for tensor in ask.tensors:
        request.inputs.add(
            name=tensor.name, datatype=tensors.datatype_name(tensor.datatype), shape=tensor.shape
        )
        request.raw_input_contents.append(tensor.raw)
    if not any(entry.optional for entry in ask.model.outputs):
        for entry in ask.model.outputs:
            request.outputs.add(name=entry.name)
    content: bytes = request.SerializeToString(deterministic=True)
    return content


def _parse(content: bytes) -> tuple[str, list[tensor_pb2.Tensor]]:
    """Read an answer strictly; raises AnswerError."""
    try:
        reply = service_pb2.ModelInferResponse.FromString(content)
    except DecodeError:
        raise AnswerError("protobuf") from None
    raws = reply.raw_output_contents
    if raws and len(raws) != len(reply.outputs):
        raise AnswerError("raw_output_contents")
    outputs = []
    for index, output in enumerate(reply.outputs):
        try:
            datatype = tensors.datatype_value(output.datatype)
        except ValueError:
            raise AnswerError("datatype") from None
        tensor = tensor_pb2.Tensor(name=output.name, shape=output.shape)
        tensor.datatype = datatype  # type: ignore[assignment]
        try:
            if raws:
                tensor.raw = raws[index]
            else:  # the same fields as the contract's
                tensor.contents.ParseFromString(output.contents.SerializeToString())
                (tensor,) = tensors.normalize([tensor])
            tensors.check_raw(tensor)
        except (tensors.TensorError, DecodeError):
            raise AnswerError("contents") from None
        outputs.append(tensor)
    return reply.model_version, outputs
