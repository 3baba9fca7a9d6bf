"""The remote service alone, as a process with environment variables only."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import ROOT, client, free_port
from tests.unit.remote.support import write_catalog


async def start(**env: str) -> asyncio.subprocess.Process:
    """`python -m services.remote` with these variables of ours only."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.remote", env=clean | env, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def test_missing_variables_are_named_all_at_once() -> None:
    """Status 2 and each name."""
    process = await start()
    output, _ = await process.communicate()
    assert process.returncode == 2
    for name in ("REMOTE_LISTEN", "CATALOG", "GRANT_KEYS", "TRUSTED_KEYS", "ACCESS_FILE"):
        assert f"TWINPATH_{name}".encode() in output


async def test_a_broken_catalog_stops_it_with_file_line_and_rule(keys, tmp_path) -> None:
    """Status 1; nothing is served under a half-read catalog."""
    catalog = write_catalog(tmp_path, "https://vendor.invalid", extra="regoin: eu")
    process = await start(
        **keys.environment(), TWINPATH_REMOTE_LISTEN="127.0.0.1:0", TWINPATH_CATALOG=str(catalog)
    )
    output, _ = await process.communicate()
    assert process.returncode == 1
    assert b"standin.yaml:8: regoin" in output


async def test_it_starts_without_its_vendor_says_so_and_stops_on_term(keys, tmp_path) -> None:
    """NOT_SERVING, not dead; SIGTERM ends it with status 0."""
    catalog = write_catalog(tmp_path, f"http://127.0.0.1:{free_port()}")
    address = f"127.0.0.1:{free_port()}"
    process = await start(
        **keys.environment(), TWINPATH_REMOTE_LISTEN=address, TWINPATH_CATALOG=str(catalog)
    )
    try:
        async with client(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(
                health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=20
            )
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
