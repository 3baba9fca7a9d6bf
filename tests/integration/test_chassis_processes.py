"""Each service alone, as its own process: what it says when variables are missing, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import ROOT, MeshKeys, free_port

pytestmark = pytest.mark.integration

SHARED = {"TWINPATH_TRUSTED_KEYS", "TWINPATH_ACCESS_FILE"}
REQUIRED = {
    "router": {
        "TWINPATH_ROUTER_LISTEN",
        "TWINPATH_CATALOG",
        "TWINPATH_FEATURES_ADDRESS",
        "TWINPATH_LOCAL_ADDRESS",
        "TWINPATH_REMOTE_ADDRESS",
        "TWINPATH_AUDIT_ADDRESS",
        "TWINPATH_ROUTER_GRANT_KEY",
        "TWINPATH_STATE_URL",
    },
    "features": {
        "TWINPATH_FEATURES_LISTEN",
        "TWINPATH_FEATURES_URL",
        "TWINPATH_FEATURES_REPO",
    },
    "local": {"TWINPATH_LOCAL_LISTEN", "TWINPATH_TRITON_URL"},
    "remote": {"TWINPATH_REMOTE_LISTEN", "TWINPATH_CATALOG", "TWINPATH_GRANT_KEYS"},
    "audit": {
        "TWINPATH_AUDIT_LISTEN",
        "TWINPATH_AUDIT_DIRECTORY",
        "TWINPATH_AUDIT_KEY_STORE",
        "TWINPATH_AUDIT_SIGNING_KEY",
    },
}


def environment(**variables: str) -> dict[str, str]:
    """Return an environment with these variables of ours and no others."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    return {**kept, **variables}


def command(service: str) -> list[str]:
    """Return how a service is started by hand."""
    return [sys.executable, "-m", f"services.{service}"]


@pytest.mark.parametrize("service", sorted(REQUIRED))
def test_each_service_names_every_missing_variable_at_once(service: str) -> None:
    """Nothing set: exit code 2, one line for each variable, no stack of calls."""
    done = subprocess.run(
        command(service),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    named = {line.partition(":")[0] for line in done.stderr.splitlines() if ": is missing" in line}
    assert named == REQUIRED[service] | SHARED


@contextmanager
def started(
    service: str, keys: MeshKeys, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a service; give the process and its address; leave nothing running."""
    given = {**keys.environment(), "TWINPATH_PING_INTERVAL_S": "0.1", **variables}
    process = subprocess.Popen(
        command(service), cwd=ROOT, env=environment(**given), stderr=subprocess.PIPE, text=True
    )
    try:
        yield process, _address(process)
    finally:
        process.kill()
        process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    seen = []
    for text in process.stderr:
        seen.append(text)
        line = json.loads(text)
        if line["message"] == "listening":
            return str(line["address"])
    raise AssertionError("".join(seen))


def audit_variables(folder: Path) -> dict[str, str]:
    """Return what an audit service of its own needs."""
    return {
        "TWINPATH_AUDIT_LISTEN": "127.0.0.1:0",
        "TWINPATH_AUDIT_DIRECTORY": str(folder / "audit"),
        "TWINPATH_AUDIT_KEY_STORE": str(folder / "keys.sqlite"),
        "TWINPATH_AUDIT_SIGNING_KEY": str(folder / "signing.pem"),
    }


def health(address: str, expected: int) -> None:
    """Watch a service until it says what is expected."""
    with grpc.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=""), timeout=60, wait_for_ready=True
        )
        for answer in watch:
            if answer.status == expected:
                watch.cancel()
                return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_service_in_order(
    keys: MeshKeys, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM or SIGINT: exit code 0, every line of the log JSON, no stack of calls."""
    with started("audit", keys, **audit_variables(tmp_path)) as (process, address):
        health(address, health_pb2.HealthCheckResponse.SERVING)
        process.send_signal(number)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == 0, rest
    messages = [json.loads(line)["message"] for line in rest.splitlines()]
    assert "stopping" in messages
    assert "Traceback" not in rest


def test_a_dependency_that_is_down_at_start_keeps_a_service_up(keys: MeshKeys) -> None:
    """`local` without Triton starts, says NOT_SERVING and which dependency, and stops in order."""
    variables = {
        "TWINPATH_LOCAL_LISTEN": "127.0.0.1:0",
        "TWINPATH_TRITON_URL": f"127.0.0.1:{free_port()}",
    }
    with started("local", keys, **variables) as (process, address):
        health(address, health_pb2.HealthCheckResponse.NOT_SERVING)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == 0, rest


def test_a_port_that_is_taken_ends_a_service_with_1(keys: MeshKeys, tmp_path: Path) -> None:
    """What can't start says so in its log, and by its exit code."""
    first, second = tmp_path / "1", tmp_path / "2"
    with started("audit", keys, **audit_variables(first)) as (_, address):
        variables = {**audit_variables(second), "TWINPATH_AUDIT_LISTEN": address}
        done = subprocess.run(
            command("audit"),
            cwd=ROOT,
            env=environment(**keys.environment(), **variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["message"] == "cannot go on"


def test_a_broken_access_table_ends_a_service_with_file_and_line(
    keys: MeshKeys, tmp_path: Path
) -> None:
    """Nobody runs with half a table."""
    table = tmp_path / "access.yaml"
    table.write_text("/a.B/C: [anyone]\n/a.B/C: [anyone]\n")
    variables = {**audit_variables(tmp_path), "TWINPATH_ACCESS_FILE": str(table)}
    done = subprocess.run(
        command("audit"),
        cwd=ROOT,
        env=environment(**{**keys.environment(), **variables}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"{table}:2: " in done.stderr
