"""The one client of Triton: its protocols in, our own types out.

Requests are built as the protocol's messages with raw contents; tritonclient's InferInput objects
would copy each tensor twice more and cost about as much as the call itself. All goes by gRPC, but
for small requests of quick models where the HTTP door's address is known (rest.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from services.chassis.clock import Clock
from services.local import metrics, rest, shared
from services.local.batching import derive
from services.local.exchange import NAMES, VALUES, Answer, Ask, Metadata
from services.local.faults import TritonError, translate
from services.local.shared import Arena, Slot
from services.local.spec import ModelSpec, TensorSpec
from services.local.usage import Counters
from services.local.wire import UnreachableError, Wire
from twinpath.inference.v1 import tensor_pb2

log = logging.getLogger(__name__)

_SHARE_S = 2.0
_PASSING = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE})
_UNMAPPED = "shared memory region"  # of Triton's words for one that it does not know

_KEEPALIVE: list[tuple[str, Any]] = [
    ("grpc.enable_retries", 0),
    # Pings on a connection that carries no answer (a dead network, a stopped process) end it
    # after 15 s; health pings have made Triton send something long before, so that these never
    # count as too many.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two replicas, or two clients in one test, must not share a connection by accident.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of Triton's repository index. `state` is Triton's word, such as "READY"."""

    name: str
    version: str
    state: str
    reason: str


class TritonServer:
    """One Triton server. All its calls raise TritonError, and none outlives its timeout."""

    def __init__(
        self,
        url: str,
        max_message_bytes: int,
        sharing: Sharing | None = None,
        wire: Wire | None = None,
    ) -> None:
        """Connect when it is first needed.

        Args:
            url: host:port of its gRPC.
            max_message_bytes: the most bytes of a message.
            sharing: our shared memory, if the server may map it.
            wire: to its HTTP door; None: everything goes by gRPC.
        """
        self.url = url
        self._wire = wire
        self._sharing = sharing
        self._mapped = False  # the server has mapped our shared memory
        self._asked = False  # it was asked to, since it came
        options = [
            *_KEEPALIVE,
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
        ]
        self._channel = grpc.aio.insecure_channel(url, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._working: set[Any] = set()  # calls of models that are under way
        self._dropped: set[Any] = set()

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        if self._sharing is not None and self._mapped:
            with suppress(TritonError):
                await self._unmap(self._sharing.arena.name)
        if self._wire is not None:
            self._wire.close()
        await self._channel.close()

    @property
    def shares(self) -> bool:
        """Whether the server has answered for our shared memory, or need not."""
        return self._sharing is None or self._asked

    async def share(self) -> None:
        """Let the server map our shared memory, and forget that of processes that are no more.

        Where it can't, because it runs elsewhere or sees another /dev/shm, tensors go by wire.
        """
        if self._sharing is None:
            return
        arena = self._sharing.arena
        left = False
        try:
            request = service_pb2.SystemSharedMemoryStatusRequest()
            status = await self._call(self._stub.SystemSharedMemoryStatus, request, _SHARE_S)
            for name in status.regions:
                if name.startswith(shared.PREFIX) and not shared.is_live(name):
                    try:
                        await self._unmap(name)
                    except TritonError:  # a model still reads what a killed process asked
                        left = True
            if not self._mapped:
                if arena.name in status.regions:
                    await self._unmap(arena.name)
                request = service_pb2.SystemSharedMemoryRegisterRequest(
                    name=arena.name, key=f"/{arena.name}", offset=0, byte_size=arena.size
                )
                await self._call(self._stub.SystemSharedMemoryRegister, request, _SHARE_S)
                self._mapped = True
            self._asked = not left
        except TritonError as error:
            self._asked = error.error.code not in _PASSING
            log.info("no shared memory", extra={"replica": self.url, "why": str(error)})

    async def _unmap(self, name: str) -> None:
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        await self._call(self._stub.SystemSharedMemoryUnregister, request, _SHARE_S)

    def drop(self) -> None:
        """End the calls of models that are under way, as if the server had gone.

        For a server that hangs: its connection stands, and nothing comes.
        """
        self._mapped = self._asked = False
        if self._wire is not None:
            self._wire.drop()
        self._dropped |= self._working
        for call in list(self._working):
            call.cancel()

    async def live(self, timeout: float) -> bool:
        """Ask whether the server runs; false while it starts or stops. Says nothing of models."""
        reply = await self._call(self._stub.ServerLive, service_pb2.ServerLiveRequest(), timeout)
        return bool(reply.live)

    async def index(self, timeout: float) -> list[IndexEntry]:
        """Return every model version that the server knows of, loaded or not."""
        request = service_pb2.RepositoryIndexRequest()
        reply = await self._call(self._stub.RepositoryIndex, request, timeout)
        return [IndexEntry(m.name, m.version, m.state, m.reason) for m in reply.models]

    async def describe(self, name: str, version: str, timeout: float) -> ModelSpec:
        """Return a loaded model's description, from its metadata and configuration."""
        meta = await self._call(
            self._stub.ModelMetadata,
            service_pb2.ModelMetadataRequest(name=name, version=version),
            timeout,
        )
        reply = await self._call(
            self._stub.ModelConfig,
            service_pb2.ModelConfigRequest(name=name, version=version),
            timeout,
        )
        return _spec(name, version, meta, reply.config)

    async def counters(self, timeout: float) -> dict[tuple[str, str], Counters]:
        """Return the counts of every loaded model version."""
        request = service_pb2.ModelStatisticsRequest()
        reply = await self._call(self._stub.ModelStatistics, request, timeout)
        return {(m.name, m.version): _counters(m) for m in reply.model_stats}

    async def infer(self, ask: Ask, timeout: float, metadata: Metadata = ()) -> Answer:
        """Run a model once. Large tensors go through shared memory, if the server has it."""
        if self._wire is not None and rest.fits(ask):
            try:
                return await self._post(self._wire, ask, timeout, metadata)
            except UnreachableError:
                log.debug("no HTTP", extra={"replica": self.url})  # gRPC can tell more
        if self._sharing is not None and self._mapped:
            with self._sharing.place(ask) as placed:
                if placed:
                    request = _request(ask, placed, self._sharing.arena.name)
                    try:
                        return await self._infer(ask, request, timeout, metadata, placed)
                    except _UnmappedError:  # it has restarted: by wire, and again by memory later
                        self._mapped = self._asked = False
        return await self._infer(ask, _request(ask), timeout, metadata, {})

    async def _post(self, wire: Wire, ask: Ask, timeout: float, metadata: Metadata) -> Answer:
        name, version = ask.spec.name, ask.spec.version
        request = rest.request(ask, metadata)
        try:
            reply = await wire.post(request, timeout)
            if reply.status == HTTPStatus.OK:
                return rest.answer(reply, len(request))
            code, text = rest.failure(reply)
        except TimeoutError:
            code, text = grpc.StatusCode.DEADLINE_EXCEEDED, ""
        except ConnectionError as error:
            code, text = grpc.StatusCode.UNAVAILABLE, str(error)
        except ValueError as error:
            code, text = grpc.StatusCode.UNKNOWN, str(error)
        raise translate(code, text, model=name, version=version)

    async def _infer(
        self, ask: Ask, request: Any, timeout: float, metadata: Metadata, placed: Mapping[int, Slot]
    ) -> Answer:
        with self._work(ask.spec, self._stub.ModelInfer, request, timeout, metadata) as call:
            try:
                reply = await call
            except grpc.aio.AioRpcError as error:
                if placed and _UNMAPPED in (error.details() or ""):
                    raise _UnmappedError from error
                raise
        aside = sum(len(ask.inputs[index].raw) for index in placed)
        return _answer(reply, request.ByteSize() + aside)

    async def stream(
        self, ask: Ask, timeout: float, metadata: Metadata = ()
    ) -> AsyncGenerator[Answer]:
        """Run a model and yield its responses; ends normally only after Triton's final mark.

        Closing the iterator cancels the call, and Triton tells the model.

        Raises:
            TritonError: also for a stream that ends without the mark.
        """
        name, version = ask.spec.name, ask.spec.version
        request = _request(ask)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        size = request.ByteSize()
        # Not with Triton's `triton_grpc_error` header: the server dies (2.51) when a model sends
        # anything after its error.
        method = self._stub.ModelStreamInfer
        with self._work(ask.spec, method, _once(request), timeout, metadata) as call:
            async for message in call:
                if message.error_message:
                    code, text = grpc.StatusCode.INTERNAL, message.error_message
                    raise translate(code, text, model=name, version=version)
                reply = message.infer_response
                if reply.outputs:
                    yield _answer(reply, size)
                if reply.parameters["triton_final_response"].bool_param:
                    return
        raise translate(grpc.StatusCode.UNAVAILABLE, "ended early", model=name, version=version)

    @contextmanager
    def _work(
        self, spec: ModelSpec, method: Any, request: Any, timeout: float, metadata: Metadata
    ) -> Iterator[Any]:
        """Give a call, keep it where `drop` finds it, translate its failure, leave it ended."""
        call = method(request, timeout=timeout, metadata=metadata)
        self._working.add(call)
        try:
            yield call
        except grpc.aio.AioRpcError as error:
            raise _translated(error, spec.name, spec.version) from error
        except asyncio.CancelledError:
            if call not in self._dropped:
                raise  # our own caller went away
            raise translate(
                grpc.StatusCode.UNAVAILABLE, "dropped", model=spec.name, version=spec.version
            ) from None
        except grpc.aio.UsageError as error:  # the channel is closed: this service is stopping
            raise translate(grpc.StatusCode.UNAVAILABLE, "") from error
        finally:
            call.cancel()  # nothing, if it is done
            self._working.discard(call)
            self._dropped.discard(call)

    async def load(self, name: str, timeout: float, config: str = "") -> None:
        """Load a model, or load it anew, under explicit control.

        Args:
            name: The model.
            timeout: Seconds.
            config: As `with_versions` makes it; empty: the repository's own.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        if config:
            request.parameters["config"].string_param = config
        await self._call(self._stub.RepositoryModelLoad, request, timeout, model=name)

    async def unload(self, name: str, timeout: float) -> None:
        """Unload a model, under explicit control."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        await self._call(self._stub.RepositoryModelUnload, request, timeout, model=name)

    async def _call(
        self,
        method: Any,
        request: Any,
        timeout: float,
        model: str = "",
    ) -> Any:
        try:
            return await method(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, model, "") from error
        except grpc.aio.UsageError as error:  # the channel is closed: this service is stopping
            raise translate(grpc.StatusCode.UNAVAILABLE, "") from error


async def _once(request: Any) -> AsyncIterator[Any]:
    yield request


def _translated(error: grpc.aio.AioRpcError, model: str, version: str) -> TritonError:
    return translate(error.code(), error.details() or "", model=model, version=version)


class _UnmappedError(Exception):
    """The server does not know our shared memory (any more)."""


class Sharing:
    """Our shared memory, and which tensors go through it."""

    def __init__(self, arena: Arena, from_bytes: int, clock: Clock) -> None:
        self.arena = arena
        self._from = from_bytes
        self._clock = clock

    @contextmanager
    def place(self, ask: Ask) -> Iterator[Mapping[int, Slot]]:
        """Put the large tensors there for the time of a call; gives their places by index.

        What is raised meanwhile says nothing about whether the server has read them.
        """
        placed: dict[int, Slot] = {}
        for index, tensor in enumerate(ask.inputs):
            raw = tensor.raw
            if len(raw) >= self._from:
                slot = self.arena.put(raw, self._clock.monotonic())
                if slot is not None:
                    placed[index] = slot
                    metrics.SHARED.inc(len(raw))
        try:
            yield placed
        except BaseException:
            for slot in placed.values():
                self.arena.retire(slot, self._clock.monotonic())
            raise
        for slot in placed.values():
            self.arena.free(slot)


def _request(ask: Ask, placed: Mapping[int, Slot] | None = None, region: str = "") -> Any:
    request = service_pb2.ModelInferRequest(
        model_name=ask.spec.name, model_version=ask.spec.version, id=ask.id
    )
    for index, tensor in enumerate(ask.inputs):
        given = request.inputs.add(
            name=tensor.name, datatype=NAMES[tensor.datatype], shape=tensor.shape
        )
        raw = tensor.raw
        if placed and index in placed:
            given.parameters["shared_memory_region"].string_param = region
            given.parameters["shared_memory_offset"].int64_param = placed[index].offset
            given.parameters["shared_memory_byte_size"].int64_param = len(raw)
        else:
            request.raw_input_contents.append(raw)
    if ask.priority:
        request.parameters["priority"].int64_param = ask.priority
    if ask.timeout_us:
        request.parameters["timeout"].int64_param = ask.timeout_us
    return request


def _answer(reply: Any, bytes_out: int) -> Answer:
    outputs = []
    raws = reply.raw_output_contents
    for index, output in enumerate(reply.outputs):
        outputs.append(
            tensor_pb2.Tensor(
                name=output.name,
                datatype=VALUES.get(output.datatype, tensor_pb2.DATATYPE_UNSPECIFIED),
                shape=output.shape,
                raw=raws[index] if index < len(raws) else b"",
            )
        )
    return Answer(reply.model_version, outputs, bytes_out, reply.ByteSize())


def with_versions(config: str, versions: Iterable[str], budget_ms: float = 0.0) -> str:
    """Return a `config.pbtxt` as the JSON that `load` takes, for exactly these versions.

    Triton leaves versions that are loaded already as they are, and lets those that are no longer
    named end their work. With a budget a model that batches dynamically does so as it says.

    Raises:
        ValueError: It is no configuration of a model.
    """
    try:
        parsed = text_format.Parse(config, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(f"config.pbtxt can't be read: {error}") from error
    parsed.ClearField("version_policy")
    parsed.version_policy.specific.versions.extend(int(version) for version in versions)
    batching = derive(budget_ms, parsed.max_batch_size)
    if batching is not None and parsed.HasField("dynamic_batching"):
        parsed.dynamic_batching.max_queue_delay_microseconds = batching.delay_us
        parsed.dynamic_batching.preferred_batch_size[:] = batching.preferred
    text: str = json_format.MessageToJson(parsed, preserving_proto_field_name=True)
    return text


def _tensor_specs(entries: Iterable[Any], optional: frozenset[str]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            entry.name,
            VALUES[entry.datatype],
            tuple(entry.shape),
            entry.name in optional,
        )
        for entry in entries
    )


def _spec(name: str, version: str, meta: Any, config: model_config_pb2.ModelConfig) -> ModelSpec:
    optional = frozenset(entry.name for entry in config.input if entry.optional)
    batching = config.dynamic_batching
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    return ModelSpec(
        name=name,
        version=version,
        inputs=_tensor_specs(meta.inputs, optional),
        outputs=_tensor_specs(meta.outputs, frozenset()),
        max_batch_size=config.max_batch_size,
        decoupled=config.model_transaction_policy.decoupled,
        priority_levels=batching.priority_levels,
        queue_timeout=any(policy.allow_timeout_override for policy in policies),
        instances=max(1, sum(g.count * max(1, len(g.gpus)) for g in config.instance_group)),
    )


def _counters(stats: Any) -> Counters:
    each = stats.inference_stats
    parts = ("compute_input", "compute_infer", "compute_output")
    return Counters(
        requests=each.success.count,
        rows=stats.inference_count,
        queue_ns=each.queue.ns,
        compute_ns=sum(getattr(each, part).ns for part in parts),
        busy_ns=sum(getattr(batch, part).ns for batch in stats.batch_stats for part in parts),
    )
