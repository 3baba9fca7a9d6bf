"""A latency budget in the catalog becomes the real Triton's batching."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.local.compose import build
from services.local.settings import LocalSettings
from tests import triton_models
from tests.local_path import Stub, ask, features, item, new_triton
from tests.support import MeshKeys, client, settings_for, start_service

pytestmark = pytest.mark.integration

TASK = """
name: sums
inputs: [{name: features, datatype: FP32, shape: [1, 3]}]
outputs: [{name: sum, datatype: FP32, shape: [1, 1]}]
candidates: [{id: x, path: local, model: batched, version: live, budget_ms: 200}]
"""


async def test_the_budget_is_in_tritons_own_configuration(keys: MeshKeys, tmp_path: Path) -> None:
    """And a task that wants the version that serves gets the newest one loaded, and answers."""
    tasks = tmp_path / "catalog" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "sums.yaml").write_text(TASK)
    async with new_triton(tmp_path, triton_models.batched, control="explicit") as server:
        settings = settings_for(
            LocalSettings,
            keys,
            triton_url=server.url,
            models=server.options.models,
            catalog=tasks.parent,
            control="explicit",
            refresh_s=0.1,
        )
        async with (
            start_service(settings, build) as service,
            client(service.address, keys.token("service:router")) as channel,
        ):
            async with asyncio.timeout(60):
                while not await service.health.check():  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.05)
            [result] = await ask(Stub(channel), item("batched", features([1, 2, 3])))
            assert result.status.code == 0, result.status
            assert result.metering.reported_version == "2"
        async with grpc.aio.insecure_channel(server.url) as direct:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(direct)
            request = service_pb2.ModelConfigRequest(name="batched", version="2")
            batching = (await stub.ModelConfig(request)).config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 2000
    assert list(batching.preferred_batch_size) == [2, 8]
