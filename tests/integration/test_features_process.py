"""The feature service as a process: settings, metrics, and Redis killed under load."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import pytest

from services.chassis.errors import from_rpc_error
from services.cli.embedded.valkey import Valkey
from tests import support
from tests.unit.features import feast_repo
from twinpath.features.v1 import features_pb2_grpc

pytestmark = pytest.mark.integration


def test_missing_variables_are_reported_by_name() -> None:
    """All of them at once, with exit code 2."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TWINPATH_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.features"],
        env={**environment, "TWINPATH_FEATURES_URL": "http://wrong"},
        capture_output=True,
        text=True,
        cwd=support.ROOT,
        check=False,
    )
    assert done.returncode == 2
    for name in ("LISTEN", "REPO", "URL"):
        assert f"TWINPATH_FEATURES_{name}" in done.stderr
    assert "TWINPATH_TRUSTED_KEYS" in done.stderr


def test_importing_feast_leaves_metrics_alone() -> None:
    """Feast's import sets variables that send metrics of us and our children to files."""
    code = (
        "import os, services.features.store\n"
        "assert not [k for k in os.environ if k.startswith('PROMETHEUS_MULTIPROC')]\n"
        "from prometheus_client import values\n"
        "assert values.ValueClass.__name__ == 'MutexValue'\n"
    )
    # Feast may have been imported in this process, by another test.
    bare = {k: v for k, v in os.environ.items() if not k.upper().startswith("PROMETHEUS_MULTIPROC")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, check=True, cwd=support.ROOT, env=bare)


async def test_redis_killed_under_load_gives_clear_errors_and_recovers(
    tmp_path: Path, keys: support.MeshKeys
) -> None:
    """Every call ends with an answer or UNAVAILABLE; with Redis back, all are answered."""
    from feast import Entity, FeatureService, FeatureView, Field, ValueType
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import Int64

    server = Valkey("features", tmp_path / "valkey")
    await server.start()
    repo = feast_repo.Repo(tmp_path / "repo", server.address)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    clicks = FeatureView(
        name="clicks",
        entities=[user],
        schema=[Field(name="count", dtype=Int64)],
        source=feast_repo.file_source("clicks"),
    )
    repo.apply(user, clicks, FeatureService(name="clicks_v1", features=[clicks]))
    row = {"count": Value(int64_val=5)}
    repo.write("clicks", {"user_id": Value(int64_val=1)}, row, datetime.now(tz=UTC))
    port = support.free_port()
    environment = {
        **os.environ,
        **keys.environment(),
        "TWINPATH_FEATURES_LISTEN": f"127.0.0.1:{port}",
        "TWINPATH_FEATURES_URL": server.url,
        "TWINPATH_FEATURES_REPO": str(repo.folder),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.features"),
        env=environment,
        cwd=support.ROOT,
        stderr=subprocess.DEVNULL,
    )
    seen: dict[str, int] = {}
    back: Valkey | None = None
    try:
        async with support.client(f"127.0.0.1:{port}", keys.token("service:router")) as channel:
            client = feast_repo.Client(features_pb2_grpc.FeaturesStub(channel), None, channel)
            await client.ready("clicks_v1")
            stop = asyncio.Event()

            async def call() -> None:
                while not stop.is_set():
                    try:
                        await client.get("clicks_v1", {"user_id": [1]}, timeout=5)
                        reason = "OK"
                    except grpc.aio.AioRpcError as error:
                        reason = from_rpc_error(error).reason
                        await asyncio.sleep(0.01)
                    seen[reason] = seen.get(reason, 0) + 1

            callers = [asyncio.create_task(call()) for _ in range(16)]
            await _until(lambda: seen.get("OK", 0) > 50)
            server.kill()
            await server.stop()
            await _until(lambda: seen.get("FEATURE_STORE_UNAVAILABLE", 0) > 50)
            back = Valkey("features", tmp_path / "again", server.port)
            await back.start()
            recovered = seen["OK"] + 50
            await _until(lambda: seen["OK"] > recovered)
            stop.set()
            await asyncio.gather(*callers)
            assert set(seen) == {"OK", "FEATURE_STORE_UNAVAILABLE"}
            answer = await client.get("clicks_v1", {"user_id": [1]})
            assert not answer.rows[0].status.code
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)
        await server.stop()
        if back is not None:
            await back.stop()
    assert process.returncode == 0


async def _until(true: object) -> None:
    async with asyncio.timeout(60):
        while not true():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.02)
