"""A new model version through the whole mesh: it takes the task's traffic, and gives it back."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from deploy.training.repository import read_key
from services.local.manifest import CARD, write_card
from tests.integration.conftest import DIABETES, LOCAL, MeshUnderTest, request
from twinpath.inference.v1 import model_control_pb2 as pb
from twinpath.inference.v1 import model_control_pb2_grpc
from twinpath.router.v1 import router_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = "diabetes_small"
Control = model_control_pb2_grpc.ModelControlStub


@pytest.fixture
async def second(mesh: MeshUnderTest) -> AsyncIterator[Path]:
    """Version 2 in the repository, signed like the first: the card of the first with its number."""
    layout = mesh.launcher.layout
    folder = layout.trained / MODEL
    shutil.copytree(folder / "1", folder / "2")
    card = json.loads((folder / "2" / CARD).read_text())
    key = read_key(layout.artifact_keys / "artifacts.key")
    write_card(folder / "2", {**card, "version": "2"}, key)
    yield folder / "2"
    shutil.rmtree(folder / "2")


async def test_load_and_rollback_move_the_traffic_and_lose_no_request(
    mesh: MeshUnderTest, second: Path
) -> None:
    """Replies and their attempts name the version that answered, as Triton reports it."""
    assert second.name == "2"
    seen: list[str] = []
    stop = asyncio.Event()
    async with mesh.router() as router, mesh.channel("local", "operator") as channel:
        control = Control(channel)

        async def caller(number: int) -> None:
            while not stop.is_set():
                asked = request(DIABETES, 1 + number, only_path=LOCAL)
                reply: router_pb2.InferResponse = await router.Infer(asked, timeout=10)
                (attempt,) = reply.attempts
                assert attempt.reported_version == reply.answered_by.version
                assert attempt.candidate == reply.answered_by
                seen.append(reply.answered_by.version)

        async def until(version: str) -> None:
            """Wait until only this version answers."""
            async with asyncio.timeout(60):
                while seen[-20:] != [version] * 20:  # noqa: ASYNC110 - a count, not an event
                    await asyncio.sleep(0.02)

        callers = [asyncio.create_task(caller(number)) for number in range(6)]
        await until("1")
        loaded = await control.LoadModel(pb.LoadModelRequest(model=MODEL, version="2"), timeout=60)
        assert loaded.state.serving
        assert not loaded.pins
        await until("2")
        back = await control.SetServing(pb.SetServingRequest(model=MODEL))
        assert (back.state.version, back.before) == ("1", "2")
        # At once, while the router may not have heard of it: the old one answers until it has.
        unloaded = await control.UnloadModel(
            pb.UnloadModelRequest(model=MODEL, version="2"), timeout=60
        )
        assert unloaded.cut_off == 0
        await until("1")
        stop.set()
        await asyncio.gather(*callers)  # each of them raises what it was refused with
        assert set(seen) == {"1", "2"}
        changes = [after for before, after in itertools.pairwise(seen) if before != after]
        assert changes[-1] == "1"


async def test_the_serving_version_cant_be_unloaded(mesh: MeshUnderTest, second: Path) -> None:
    """Neither by mistake nor while another one is loaded aside."""
    assert second.name == "2"
    async with mesh.channel("local", "operator") as channel:
        control = Control(channel)
        request_ = pb.LoadModelRequest(model=MODEL, version="2", aside=True)
        assert not (await control.LoadModel(request_, timeout=60)).state.serving
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await control.UnloadModel(pb.UnloadModelRequest(model=MODEL, version="1"), timeout=60)
        assert "let another version do so first" in str(refused.value.details())
        await control.UnloadModel(pb.UnloadModelRequest(model=MODEL, version="2"), timeout=60)
