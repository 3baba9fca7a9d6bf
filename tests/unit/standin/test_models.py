"""The stand-in vendor runs real ONNX models, and starts and stops as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import numpy as np
import onnx
import onnx.helper as oh
import pytest

from services.cli.embedded.ports import free_ports
from services.standin.app import StandIn
from services.standin.engine import Engine, ModelLoadError
from services.standin.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two versions of `doubler`: times 2 and times 20."""
    for version, factor in (("1", 2.0), ("2", 20.0)):
        node = oh.make_node("Mul", ["features", "factor"], ["progression"])
        graph = oh.make_graph(
            [node],
            "doubler",
            [oh.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [None, 2])],
            [oh.make_tensor_value_info("progression", onnx.TensorProto.FLOAT, [None, 2])],
            [oh.make_tensor("factor", onnx.TensorProto.FLOAT, [1], [factor])],
        )
        model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / "doubler" / version / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(model, path)
    return tmp_path


def request(**changes):
    """A request that `doubler` takes, with some fields of its tensor changed."""
    entry = {"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.5]}
    return {"inputs": [entry | changes]}


async def test_a_real_model_computes(models: Path) -> None:
    """The newest version answers unless one is named, and its signature is its metadata."""
    async with StandIn(Settings(token="t", models=models)) as standin:
        headers = {"Authorization": "Bearer t"}
        async with aiohttp.ClientSession(standin.url, headers=headers) as vendor:
            for path, version, factor in (("", "2", 20), ("/versions/1", "1", 2)):
                async with vendor.post(f"/v2/models/doubler{path}/infer", json=request()) as reply:
                    answer = await reply.json()
                assert answer["model_version"] == version
                assert answer["outputs"][0]["data"] == [factor * 1.0, factor * 2.5]
            async with vendor.get("/v2/models/doubler") as reply:
                described = await reply.json()
            assert described["inputs"] == [
                {"name": "features", "datatype": "FP32", "shape": [-1, 2]}
            ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "other"}, "unexpected inference input 'other'"),
        ({"datatype": "FP64"}, "data-type is FP64, model expects FP32"),
        ({"shape": [2]}, r"shape is \[2\], model expects \[-1, 2\]"),
        ({"shape": [2, 1]}, r"shape is \[2, 1\]"),
    ],
)
async def test_a_model_refuses_what_does_not_fit_its_signature(models, changes, words) -> None:
    """400 with the reason, before anything is computed."""
    import re

    async with StandIn(Settings(token="t", models=models)) as standin:
        headers = {"Authorization": "Bearer t"}
        async with (
            aiohttp.ClientSession(standin.url, headers=headers) as vendor,
            vendor.post("/v2/models/doubler/infer", json=request(**changes)) as reply,
        ):
            assert reply.status == 400
            assert re.search(words, (await reply.json())["error"])


def test_a_broken_model_is_named(tmp_path: Path) -> None:
    """The message holds the file's path."""
    path = tmp_path / "bad" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(np.zeros(8).tobytes())
    with pytest.raises(ModelLoadError, match=r"bad/1/model\.onnx"):
        Engine(tmp_path, 1)


def test_an_empty_folder_is_a_mistake(tmp_path: Path) -> None:
    """A wrong path does not pass for a vendor without models."""
    with pytest.raises(ModelLoadError, match="holds no"):
        Engine(tmp_path, 1)
    with pytest.raises(ModelLoadError, match="no such folder"):
        Engine(tmp_path / "ghost", 1)


async def run_main(**env: str) -> asyncio.subprocess.Process:
    """`python -m services.standin` with these variables only."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TWINPATH_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.standin",
        env=clean | env,
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_as_a_process_it_stops_on_term() -> None:
    """SIGTERM ends it with status 0, also while a request hangs."""
    port, admin_port = free_ports(2)
    process = await run_main(
        TWINPATH_STANDIN_TOKEN="t",
        TWINPATH_STANDIN_PORT=str(port),
        TWINPATH_STANDIN_ADMIN_PORT=str(admin_port),
    )
    try:
        assert "stand-in vendor" in (await process.stderr.readline()).decode()
        headers = {"Authorization": "Bearer t", "x-standin-fault": "hang"}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as vendor:
            hanging = asyncio.create_task(vendor.post("/v2/models/echo/infer", json=request()))
            await asyncio.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            with pytest.raises(aiohttp.ClientError):
                await hanging
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_all_mistakes_in_its_settings_are_named_at_once() -> None:
    """Status 2, and each variable by name."""
    process = await run_main(
        TWINPATH_STANDIN_TOKEN="t",
        TWINPATH_STANDIN_PORT="no",
        TWINPATH_STANDIN_LATENCY_MS="-1",
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert b"TWINPATH_STANDIN_PORT" in stderr
    assert b"TWINPATH_STANDIN_LATENCY_MS" in stderr


async def test_a_missing_token_is_named() -> None:
    """It does not start open to everybody."""
    process = await run_main()
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert b"TWINPATH_STANDIN_TOKEN" in stderr
