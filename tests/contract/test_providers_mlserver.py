"""The remote path before MLServer, a model server that is not ours; opt-in.

MLServer wants an environment of its own. Make one, name its program, and run:

    python -m venv /tmp/mlserver && /tmp/mlserver/bin/pip install mlserver mlserver-sklearn
    TWINPATH_TEST_MLSERVER=/tmp/mlserver/bin/mlserver pytest tests/contract/test_providers_mlserver.py

It serves a linear model of scikit-learn's that its own environment fits and saves. Over HTTP it
speaks the protocol's JSON, over gRPC the raw contents.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from services.chassis.errors import from_status
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from tests.support import free_port
from tests.unit.remote.support import Remote, make_item, start_remote
from twinpath.common.v1 import context_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2

PROGRAM = os.environ.get("TWINPATH_TEST_MLSERVER", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not PROGRAM, reason="TWINPATH_TEST_MLSERVER names no MLServer; see above"),
]
# 2 a + 3 b + 1, exactly.
FIT = """
import joblib, numpy as np
from sklearn.linear_model import LinearRegression
model = LinearRegression()
model.coef_, model.intercept_ = np.array([2.0, 3.0]), 1.0
model.n_features_in_ = 2
joblib.dump(model, "model.joblib")
"""
PROVIDER = """
name: standin
protocol: {protocol}
base_url: {base_url}
token: {{file: {token_file}}}
region: eu
max_data_class: internal
encoding: json
probe_path: /v2/health/ready
models:
  - name: line
    version: v1
    inputs: [{{name: features, datatype: FP64, shape: [-1, 2]}}]
    outputs: [{{name: predict, datatype: FP64, shape: [-1, 1]}}]
    price: {{per_call_nanos_usd: 7}}
  - name: ghost
    version: v1
    inputs: [{{name: features, datatype: FP64, shape: [-1, 2]}}]
    outputs: [{{name: predict, datatype: FP64, shape: [-1, 1]}}]
"""


@contextlib.asynccontextmanager
async def served(protocol: str, keys, folder: Path) -> AsyncIterator[Remote]:
    """The service, with MLServer for its vendor."""
    http, grpc, metrics = free_port(), free_port(), free_port()
    model = folder / "mlserver" / "line"
    model.mkdir(parents=True)
    python = Path(PROGRAM).with_name("python")
    fit = [python, "-c", FIT]
    await asyncio.to_thread(subprocess.run, fit, cwd=model, check=True, timeout=120)
    settings = {
        "name": "line",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": "v1"},
    }
    (model / "model-settings.json").write_text(json.dumps(settings))
    server = {
        "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics,
        "parallel_workers": 0,
    }  # fmt: skip
    (folder / "mlserver" / "settings.json").write_text(json.dumps(server))

    async def ready() -> bool:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{http}/v2/models/line/versions/v1/ready") as reply,
        ):
            return reply.status == 200

    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    spec = ProcessSpec(
        "mlserver", (PROGRAM, "start", "."), folder / "mlserver.log", env=environment,
        cwd=folder / "mlserver", ready=ready, ready_timeout_s=120.0,
    )  # fmt: skip
    process = ManagedProcess(spec)
    await process.start()
    url = f"http://127.0.0.1:{http if protocol == 'oip-http' else grpc}"

    def provider(base_url: str, token_file: Path) -> str:
        text = PROVIDER.format(protocol=protocol, base_url=base_url, token_file=token_file)
        if protocol == "oip-http":
            return text
        return text.replace("encoding: json\n", "").replace("probe_path: /v2/health/ready\n", "")

    try:
        async with start_remote(keys, folder, url, provider=provider) as remote:
            yield remote
    finally:
        await process.stop()


async def asked(remote: Remote, model: str, *rows: list[float]) -> inference_pb2.InferResult:
    """The result of some rows."""
    given = tensors.from_numpy("features", np.array(rows, dtype=np.float64))
    item = make_item(
        remote.keys, given, model=model, version="v1",
        context=context_pb2.ItemContext(id="i"), claims={"region": "eu"},
    )  # fmt: skip
    (result,) = await remote.infer(item, timeout=30)
    return result


@pytest.mark.parametrize("protocol", ["oip-http", "oip-grpc"])
async def test_mlserver_answers_and_its_errors_are_in_the_table(
    protocol: str, keys, tmp_path
) -> None:
    """Right numbers for one row and for many, metered; an unknown model is that."""
    async with served(protocol, keys, tmp_path) as remote:
        one = await asked(remote, "line", [1.5, -2.0])
        many = await asked(remote, "line", *([float(n), 0.1 * n] for n in range(300)))
        ghost = await asked(remote, "ghost", [1.0, 2.0])
    assert one.status.code == 0, one.status
    assert tensors.to_numpy(one.outputs[0]).tolist() == [[-2.0]]
    assert many.status.code == 0, many.status
    expected = [[2.0 * n + 3.0 * (0.1 * n) + 1.0] for n in range(300)]
    assert np.allclose(tensors.to_numpy(many.outputs[0]), expected, rtol=1e-12)
    assert one.metering.reported_version == "v1"
    assert one.metering.bytes_in > 0
    assert one.metering.wire_digest
    assert one.metering.cost.nanos == 7
    assert from_status(ghost.status).reason == "VENDOR_MODEL_UNKNOWN"
