"""Fakes of the mesh's contracts, in memory, for tests of what speaks to them.

A fake passes the same contract suite as the services (tests/contract), so that a test that uses it
proves something. It takes no short cut that the contract forbids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from services.chassis import call as calls
from services.chassis.errors import (
    DataLossError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ServiceError,
    to_status,
)
from services.chassis.run import Build, Mount, Service
from twinpath.common.v1 import context_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2

Spec = tuple[str, int, Sequence[int]]
Compute = Callable[[Sequence[tensor_pb2.Tensor]], Sequence[tensor_pb2.Tensor]]


def echo(given: Sequence[tensor_pb2.Tensor]) -> Sequence[tensor_pb2.Tensor]:
    """Return the input."""
    return given


@dataclass(frozen=True)
class FakeModel:
    """A model of the fake.

    Attributes:
        name: Its name.
        inputs: Name, datatype and shape (-1: any size) of each input.
        outputs: The same of each output; None: as the inputs.
        version: Its version.
        compute: What it computes.
        chunks: It answers streams with so many chunks, each the whole output.
    """

    name: str
    inputs: Sequence[Spec]
    outputs: Sequence[Spec] | None = None
    version: str = "1"
    compute: Compute = echo
    chunks: int = 1


ECHO = FakeModel("echo", [("features", tensors.FP32, (-1, -1))])
ECHO_TYPES = FakeModel(
    "echo_types",
    [
        (f"t_{tensors.datatype_name(value).lower()}", value, (-1, -1))
        for value in tensor_pb2.Datatype.values()
        if value
    ],
)


@dataclass
class FakeInference(inference_pb2_grpc.InferenceServicer):
    """`twinpath.inference.v1.Inference` in memory.

    Attributes:
        models: What it serves.
        path: Which path it plays.
        provider: On the remote path, the vendor that it plays.
        needs_grant: It refuses items without a grant, as `remote` does; signatures are not its
            business.
        received: Every model input that reached a model, in order of arrival.
        faults: By model name: an error to answer with, or seconds to take.
    """

    models: Sequence[FakeModel] = (ECHO, ECHO_TYPES)
    path: context_pb2.Path = context_pb2.PATH_LOCAL
    provider: str = ""
    needs_grant: bool = False
    received: list[tensor_pb2.ModelInput] = field(default_factory=list)
    faults: dict[str, ServiceError | float] = field(default_factory=dict)

    async def Infer(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.InferRequest, context: Any
    ) -> inference_pb2.InferResponse:
        """Run the items at the same time."""
        results = await asyncio.gather(*(self._run(item) for item in request.items))
        return inference_pb2.InferResponse(results=results)

    async def InferStream(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.InferStreamRequest, context: Any
    ) -> AsyncIterator[inference_pb2.InferStreamResponse]:
        """Give chunks and a final message."""
        start = time.perf_counter()
        final = inference_pb2.InferResult(id=request.item.context.id)
        model, outputs = await self._attempt(request.item, final.metering)
        final.metering.first_chunk_us = _since(start)
        for _ in range(model.chunks):
            chunk = inference_pb2.InferChunk(outputs=outputs)
            yield inference_pb2.InferStreamResponse(chunk=chunk)
        final.metering.latency_us = _since(start)
        yield inference_pb2.InferStreamResponse(final=final)

    async def Describe(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.DescribeRequest, context: Any
    ) -> inference_pb2.DescribeResponse:
        """Describe the models."""
        found = [
            self._description(model)
            for model in sorted(self.models, key=lambda m: (m.name, m.version))
            if request.model in ("", model.name) and request.version in ("", model.version)
        ]
        if not found and request.model:
            raise _unknown(request.model)
        return inference_pb2.DescribeResponse(models=found)

    async def _run(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        start = time.perf_counter()
        result = inference_pb2.InferResult(id=item.context.id)
        try:
            _, outputs = await self._attempt(item, result.metering)
            result.outputs.extend(outputs)
        except ServiceError as error:
            result.status.CopyFrom(to_status(error))
        result.metering.latency_us = _since(start)
        return result

    async def _attempt(
        self, item: inference_pb2.InferItem, metering: inference_pb2.Metering
    ) -> tuple[FakeModel, Sequence[tensor_pb2.Tensor]]:
        left = _time_left(item)
        if self.needs_grant and not item.HasField("grant"):
            raise PermissionDeniedError("GRANT_MISSING", "no grant came with the item")
        given = _input(item.input)
        model = self._find(item.model, item.version)
        violations = list(_violations(model, given))
        if violations:
            text = "; ".join(f"{place}: {what}" for place, what in violations)
            raise InvalidArgumentError("TENSOR_MISMATCH", text, violations=violations)
        self.received.append(tensor_pb2.ModelInput(tensors=given))
        metering.sent = True
        fault = self.faults.get(item.model)
        try:
            async with asyncio.timeout(left):
                if isinstance(fault, float | int):
                    await asyncio.sleep(fault)
        except TimeoutError:
            raise DeadlineExceededError("FAKE_TIMEOUT", "the model took too long") from None
        if isinstance(fault, ServiceError):
            raise fault
        try:
            outputs = model.compute(given)
        except Exception as error:
            raise InternalError("MODEL_FAILED", "the model failed") from error
        metering.reported_version = model.version
        metering.bytes_out = sum(len(t.raw) for t in given) + 1
        metering.bytes_in = sum(len(t.raw) for t in outputs) + 1
        return model, outputs

    def _find(self, name: str, version: str) -> FakeModel:
        fitting = [m for m in self.models if m.name == name and version in ("", m.version)]
        if not fitting:
            raise _unknown(name)
        return fitting[-1]

    def _description(self, model: FakeModel) -> inference_pb2.ModelDescription:
        outputs = model.inputs if model.outputs is None else model.outputs
        return inference_pb2.ModelDescription(
            name=model.name,
            version=model.version,
            path=self.path,
            provider=self.provider,
            state=inference_pb2.MODEL_STATE_READY,
            inputs=[tensor_pb2.TensorSpec(name=n, datatype=d, shape=s) for n, d, s in model.inputs],
            outputs=[tensor_pb2.TensorSpec(name=n, datatype=d, shape=s) for n, d, s in outputs],
            streaming=model.chunks > 1,
        )


def build_inference(fake: FakeInference) -> Build[Any]:
    """Return a build function, so that the fake runs behind the chassis like any service."""

    async def build(_settings: Any, _stack: AsyncExitStack) -> Service:
        add = inference_pb2_grpc.add_InferenceServicer_to_server
        return Service([Mount("twinpath.inference.v1.Inference", fake, add)])

    return build


def _since(start: float) -> int:
    return max(1, int((time.perf_counter() - start) * 1e6))


def _unknown(model: str) -> NotFoundError:
    return NotFoundError("MODEL_UNKNOWN", "there is no such model", metadata={"model": model})


def _time_left(item: inference_pb2.InferItem) -> float | None:
    """Return the seconds that an item may take; None outside of a call."""
    call = calls.current()
    left = call.time_left() if call is not None else None
    own = item.context.time_left_us / 1e6
    if own:
        left = own if left is None else min(left, own)
    # Below a tenth of a millisecond nothing can be done: the item's time is as good as up.
    if left is not None and left < 1e-4:
        raise DeadlineExceededError("DEADLINE_EXCEEDED", "the item's time is up")
    return left


def _input(given: tensor_pb2.ModelInput) -> Sequence[tensor_pb2.Tensor]:
    if given.digest:
        if not digest.fits(given):
            raise DataLossError("INPUT_DIGEST_MISMATCH", "not the tensors that were digested")
        return given.tensors
    try:
        return tensors.normalize(given.tensors, "input.tensors")
    except tensors.TensorError as error:
        violations = [(error.field, error.message)]
        raise InvalidArgumentError("TENSOR_MISMATCH", str(error), violations=violations) from None


def _violations(model: FakeModel, given: Sequence[tensor_pb2.Tensor]) -> Iterator[tuple[str, str]]:
    specs: Mapping[str, Spec] = {spec[0]: spec for spec in model.inputs}
    for index, tensor in enumerate(given):
        place = f"input.tensors[{index}]"
        if tensor.name not in specs:
            yield f"{place}.name", "the model has no such input"
            continue
        _, datatype, shape = specs[tensor.name]
        if tensor.datatype != datatype:
            yield f"{place}.datatype", "is another one"
            continue
        if len(shape) != len(tensor.shape) or any(
            want not in (-1, got) for want, got in zip(shape, tensor.shape, strict=True)
        ):
            yield f"{place}.shape", "does not fit"
        try:
            tensors.check_raw(tensor, place)
        except tensors.TensorError as error:
            yield error.field, error.message
    for name in specs.keys() - {tensor.name for tensor in given}:
        yield "input.tensors", f"{name} is missing"
