"""Items of several calls: who rides with whom, who takes turns, who is answered when."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from services.chassis.clock import SystemClock
from services.chassis.errors import InternalError, from_status
from services.local.exchange import Answer, Ask, Metadata
from services.local.item import Items
from services.local.models import Known
from services.local.spec import ModelSpec, TensorSpec
from services.local.usage import Price, Usage
from tests.local_path import features
from tests.local_path import item as make_item
from twinpath.common.v1 import context_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2

BATCH, INTERACTIVE = context_pb2.PRIORITY_BATCH, context_pb2.PRIORITY_INTERACTIVE
TRACE = "00-{:032x}-00f067aa0ba902b7-{:02x}"


class Fleet:
    """Models that echo their rows once they are let; a row of 3 fails the whole request."""

    def __init__(self) -> None:
        tensor = (TensorSpec("features", tensors.FP32, (-1, 1)),)
        self._known = {}
        for name in ("a", "b", "c"):
            known = Known(name, "1", "READY", spec=ModelSpec(name, "1", tensor, tensor, 4))
            known.meter.usage = Usage(1, 1, 1000.0)
            self._known[name] = known
        self.asked: list[tuple[str, list[float], Metadata]] = []
        self.inside = self.most = 0
        self.open = asyncio.Event()
        self.cancelled = 0

    @property
    def models(self) -> Fleet:
        """The models."""
        return self

    def peek(self, name: str, _: str) -> Known:
        """Find one."""
        return self._known[name]

    async def infer(self, ask: Ask, _: float, metadata: Metadata) -> Answer:
        """Echo."""
        rows = tensors.to_numpy(ask.inputs[0]).reshape(-1).tolist()
        self.asked.append((ask.spec.name, rows, metadata))
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        if 3 in rows:
            raise InternalError("MODEL_FAILED", "the model failed")
        return Answer("1", list(ask.inputs), 100 * len(rows), 10 * len(rows))


@pytest.fixture
def fleet() -> Fleet:
    """The models."""
    return Fleet()


@pytest.fixture
def items(fleet: Any) -> Items:
    """The way of items over them."""
    return Items(fleet, SystemClock(), Price(0.1, 1))


async def quiet() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def call(
    items: Items, *values: float, model: str = "a", seconds: float = 30, **context: Any
) -> asyncio.Task[list[inference_pb2.InferResult]]:
    """One caller's items."""
    until = time.monotonic() + seconds
    made = [make_item(model, features([value]), name=f"{value}", **context) for value in values]
    return asyncio.create_task(items.run([(item, until) for item in made]))


def said(results: list[inference_pb2.InferResult]) -> list[float]:
    """The rows that came back."""
    assert [result.status.code for result in results] == [0] * len(results), results
    return [float(tensors.to_numpy(result.outputs[0])[0, 0]) for result in results]


async def test_items_of_several_calls_ride_together(fleet: Fleet, items: Items) -> None:
    """While a request is out the next ones gather; each caller gets its own rows and metering."""
    calls = [call(items, 10)]
    await quiet()
    calls += [call(items, 11, 12), call(items, 13)]
    await quiet()
    assert [rows for _, rows, _ in fleet.asked] == [[10]]
    fleet.open.set()
    found = await asyncio.gather(*calls)
    assert [rows for _, rows, _ in fleet.asked] == [[10], [11, 12, 13]]
    assert [said(results) for results in found] == [[10], [11, 12], [13]]
    for results in found:
        for result in results:
            assert result.metering.bytes_out == 100
            assert result.metering.cost.nanos > 0
            assert result.metering.latency_us > 0


async def test_one_that_fails_a_shared_request_fails_alone(fleet: Fleet, items: Items) -> None:
    """Also when its companions belong to other callers."""
    calls = [call(items, 10)]
    await quiet()
    calls += [call(items, 1), call(items, 3), call(items, 5)]
    fleet.open.set()
    first, second, third, fourth = await asyncio.gather(*calls)
    assert [said(first), said(second), said(fourth)] == [[10], [1], [5]]
    error = from_status(third[0].status)
    assert error is not None
    assert error.reason == "MODEL_FAILED"
    assert not third[0].outputs


async def test_a_caller_is_answered_at_its_deadline(fleet: Fleet, items: Items) -> None:
    """Though its companions wait on; a request that serves nobody any more is cancelled."""
    first = call(items, 10)
    await quiet()
    short = call(items, 11, seconds=0.2)
    (late,) = await short
    error = from_status(late.status)
    assert error is not None
    assert error.reason == "MODEL_QUEUE_TIMEOUT"
    assert not late.metering.sent
    first.cancel()
    await quiet()
    assert fleet.cancelled == 1
    fleet.open.set()
    assert said(await call(items, 12)) == [12]


async def test_batch_jobs_take_turns_and_others_do_not(fleet: Fleet, items: Items) -> None:
    """Two requests of batch jobs at once, whatever their models; the interactive one goes at once."""
    calls = [call(items, 1, model=name, priority=BATCH) for name in ("a", "b", "c")]
    await quiet()
    assert fleet.most == 2
    calls.append(call(items, 2, model="c", priority=INTERACTIVE))
    await quiet()
    assert fleet.most == 3
    assert fleet.asked[-1][:2] == ("c", [2])
    fleet.open.set()
    assert [said(results) for results in await asyncio.gather(*calls)] == [[1], [1], [1], [2]]


async def test_a_recorded_trace_leads_the_request(fleet: Fleet, items: Items) -> None:
    """Triton's spans join it; two of them don't meet in one request."""
    plain = {"traceparent": TRACE.format(1, 0)}
    calls = [call(items, 10, trace=plain)]
    await quiet()
    calls.append(call(items, 11, trace=plain))
    calls += [call(items, n, trace={"traceparent": TRACE.format(n, 1)}) for n in (12, 13)]
    await quiet()
    fleet.open.set()
    await asyncio.gather(*calls)
    assert [rows for _, rows, _ in fleet.asked] == [[10], [12, 11], [13]]
    assert dict(fleet.asked[1][2])["traceparent"] == TRACE.format(12, 1)
    assert np.isclose(said(await calls[2]), 12)
