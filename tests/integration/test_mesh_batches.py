"""Batches through the whole mesh: partial failures, both paths, and a retry after a cut call."""

from __future__ import annotations

import grpc
import pytest

from tests.integration.conftest import DIABETES, LOCAL, REMOTE, MeshUnderTest, request
from tests.support import refusal
from twinpath.router.v1 import router_pb2

pytestmark = pytest.mark.integration

COUNT = 200


def items(key: str = "", count: int = COUNT) -> list[router_pb2.BatchItem]:
    """Items about as many patients, every second one at the vendor."""
    return [
        router_pb2.BatchItem(
            id=f"item-{n}",
            request=request(
                DIABETES, 1 + n, idempotency_key=key, only_path=REMOTE if n % 2 else LOCAL
            ),
        )
        for n in range(count)
    ]


async def test_items_take_different_paths_and_fail_alone(mesh: MeshUnderTest) -> None:
    """Two hundred items in one call: each has its answer on its path, and a bad one its status."""
    asked = items()
    asked[7].request.task = "nothing_here"
    async with mesh.router() as router:
        reply = await router.BatchInfer(router_pb2.BatchInferRequest(items=asked), timeout=30)
    assert [result.id for result in reply.results] == [item.id for item in asked]
    assert reply.results[7].status.code == grpc.StatusCode.NOT_FOUND.value[0]
    for number, result in enumerate(reply.results):
        if number != 7:
            assert result.response.answered_by.path == (REMOTE if number % 2 else LOCAL)


async def test_a_retry_repeats_unfinished_items_only(mesh: MeshUnderTest) -> None:
    """After a call that was cut, the same keys give finished items from the log, others anew."""
    asked = items("night-run", 60)
    async with mesh.router() as router:
        with pytest.raises(grpc.aio.AioRpcError):
            await router.BatchInfer(router_pb2.BatchInferRequest(items=asked), timeout=0.08)
        first = await router.BatchInfer(router_pb2.BatchInferRequest(items=asked), timeout=30)
        again = await router.BatchInfer(router_pb2.BatchInferRequest(items=asked), timeout=30)
    assert all(result.HasField("response") for result in first.results)
    assert all(result.response.repeated for result in again.results)
    for one, other in zip(first.results, again.results, strict=True):
        assert one.response.decision_id == other.response.decision_id
        assert one.response.outputs == other.response.outputs


async def test_item_ids_that_stand_twice_are_refused(mesh: MeshUnderTest) -> None:
    """Duplicate ids are INVALID_ARGUMENT, and nothing is decided."""
    asked = [*items(count=2), *items(count=1)]
    async with mesh.router() as router:
        error = await refusal(router.BatchInfer(router_pb2.BatchInferRequest(items=asked)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations
