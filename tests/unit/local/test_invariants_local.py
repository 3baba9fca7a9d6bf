"""What must hold on the local path whatever Triton does: its own checks, seen from Triton's side.

Triton is replaced by something that remembers what it was asked; the real one is asked the same
questions by the contract suite.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.chassis.clock import SystemClock
from services.chassis.errors import ServiceError, UnavailableError, from_status
from services.local.exchange import Answer, Ask, Metadata
from services.local.item import Items
from services.local.models import Known
from services.local.spec import ModelSpec, TensorSpec
from services.local.stream import Streams
from services.local.usage import Price
from tests.unit.chassis.probe import item as make_item
from twinpath.inference import digest
from twinpath.inference.v1 import inference_pb2, tensor_pb2

FP32 = tensor_pb2.DATATYPE_FP32
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Fleet:
    """Stands where Triton's replicas are: echoes, and remembers."""

    def __init__(self, *, decoupled: bool = False) -> None:
        tensor = (TensorSpec("features", FP32, (1, 1)),)
        spec = ModelSpec("echo", "1", tensor, tensor, decoupled=decoupled)
        self.known = Known("echo", "1", "READY", spec=spec)
        self.asked: list[tuple[Ask, Metadata]] = []
        self.error: ServiceError | None = None

    @property
    def models(self) -> Fleet:
        """The models."""
        return self

    async def find(self, _: str, __: str) -> Known:
        """Find the one model."""
        return self.known

    def peek(self, _: str, __: str) -> Known | None:
        """Find it at once."""
        return self.known

    async def refresh_anew(self) -> None:
        """Know nothing new."""

    async def infer(self, ask: Ask, _: float, metadata: Metadata) -> Answer:
        """Echo."""
        self.asked.append((ask, metadata))
        if self.error is not None:
            raise self.error
        return Answer("1", list(ask.inputs), 10, 20)

    @asynccontextmanager
    async def stream(
        self, ask: Ask, _: float, metadata: Metadata
    ) -> AsyncIterator[AsyncIterator[Answer]]:
        """Echo twice, or once and then fail."""
        self.asked.append((ask, metadata))

        async def answers() -> AsyncIterator[Answer]:
            yield Answer("1", list(ask.inputs), 10, 20)
            if self.error is not None:
                raise self.error
            yield Answer("1", list(ask.inputs), 10, 20)

        yield answers()


def items(fleet: Any) -> Items:
    """Return the way of an item over that fleet."""
    return Items(fleet, SystemClock(), Price(0.0, 1))


def digested() -> inference_pb2.InferItem:
    """Return an item as the router sends it."""
    made = make_item(time_left_us=5_000_000)
    made.input.digest = digest.digest(made.input.tensors)
    return made


async def run(fleet: Any, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
    """Run an item with plenty of time."""
    (result,) = await items(fleet).run([(item, time.monotonic() + 60)])
    return result


async def test_triton_gets_the_very_bytes_that_were_digested() -> None:
    """Nothing between the door and Triton changes the input."""
    fleet, item = Fleet(), digested()
    result = await run(fleet, item)
    assert not result.status.code
    ((ask, _),) = fleet.asked
    assert digest.digest(ask.inputs) == item.input.digest


async def test_an_input_that_is_not_what_was_digested_never_reaches_triton() -> None:
    """One flipped bit: DATA_LOSS, and no call."""
    fleet, item = Fleet(), digested()
    item.input.tensors[0].raw = b"\0\0\0\1"
    error = from_status((await run(fleet, item)).status)
    assert error is not None
    assert error.reason == "INPUT_DIGEST_MISMATCH"
    assert fleet.asked == []


async def test_an_input_without_a_digest_is_normalized_first() -> None:
    """A hand-written -0.0 arrives as 0.0."""
    fleet, item = Fleet(), make_item()
    item.input.tensors[0].raw = b"\0\0\0\x80"
    await run(fleet, item)
    assert fleet.asked[0][0].inputs[0].raw == b"\0\0\0\0"


async def test_an_item_whose_time_is_up_never_reaches_triton() -> None:
    """DEADLINE_EXCEEDED, and no attempt."""
    fleet = Fleet()
    (result,) = await items(fleet).run([(digested(), time.monotonic() - 0.001)])
    error = from_status(result.status)
    assert error is not None
    assert error.reason == "DEADLINE_EXCEEDED"
    assert fleet.asked == []


async def test_the_items_own_trace_goes_on_to_triton() -> None:
    """Also where this process records no spans itself."""
    fleet, item = Fleet(), digested()
    item.context.trace.traceparent = TRACEPARENT
    await run(fleet, item)
    assert dict(fleet.asked[0][1])["traceparent"] == TRACEPARENT


async def test_a_failed_item_is_metered_too() -> None:
    """Its latency, and that Triton may have worked."""
    fleet = Fleet()
    fleet.error = UnavailableError("TRITON_UNAVAILABLE", "away")
    result = await run(fleet, digested())
    assert result.status.code
    assert result.metering.latency_us > 0
    assert result.metering.sent


@pytest.mark.parametrize("decoupled", [True, False])
async def test_a_stream_ends_with_one_final_message(decoupled: bool) -> None:
    """Chunks, and then exactly one end, last."""
    fleet = Fleet(decoupled=decoupled)
    streams = Streams(items(fleet), fleet, SystemClock())  # type: ignore[arg-type]
    found = [m async for m in streams.run(digested(), time.monotonic() + 60)]
    assert [m.WhichOneof("message") for m in found][-1] == "final"
    assert sum(m.HasField("final") for m in found) == 1


async def test_a_stream_that_is_cut_has_no_final_message() -> None:
    """After a chunk Triton fails: what it took is said, then the error; it is never a success."""
    fleet = Fleet(decoupled=True)
    fleet.error = UnavailableError("TRITON_UNAVAILABLE", "away")
    streams = Streams(items(fleet), fleet, SystemClock())  # type: ignore[arg-type]
    messages = streams.run(digested(), time.monotonic() + 60)
    assert (await anext(messages)).WhichOneof("message") == "chunk"
    failed = (await anext(messages)).failed
    error = from_status(failed.status)
    assert error is not None
    assert error.reason == "TRITON_UNAVAILABLE"
    assert not failed.outputs
    metering = failed.metering
    assert metering.sent
    assert metering.latency_us >= metering.first_chunk_us > 0
    assert (metering.bytes_out, metering.bytes_in, metering.reported_version) == (10, 20, "1")
    with pytest.raises(UnavailableError):
        await anext(messages)
    with pytest.raises(StopAsyncIteration):
        await anext(messages)
