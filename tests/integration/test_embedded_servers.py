"""The supervisors of real servers: they start what they say, and leave nothing behind."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio

from services.cli.embedded.ports import free_port
from services.cli.embedded.process import ManagedProcess, ProcessError, ProcessSpec
from services.cli.embedded.triton import Triton, TritonOptions
from services.cli.embedded.valkey import Valkey

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
TRITON_ENV = Path(os.environ.get("TWINPATH_TRITON_ENV", ROOT / ".venv-triton"))

ECHO_CONFIG = """
name: "scratch_echo"
backend: "python"
max_batch_size: 0
input [{ name: "features", data_type: TYPE_FP32, dims: [-1, -1] }]
output [{ name: "features", data_type: TYPE_FP32, dims: [-1, -1] }]
"""
ECHO_MODEL = """
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse(
                [pb.Tensor("features", pb.get_input_tensor_by_name(r, "features").as_numpy())]
            )
            for r in requests
        ]
"""


def group_members(pgid: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == pgid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def gone_within(pgid: int, seconds: float) -> bool:
    """Whether a process group empties in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not group_members(pgid):
            return True
        time.sleep(0.05)
    return False


def sleeper(tmp_path: Path, code: str = "import time; time.sleep(600)", **more) -> ManagedProcess:
    """A process that does nothing, for long."""
    return ManagedProcess(
        ProcessSpec("sleeper", (sys.executable, "-c", code), tmp_path / "log.txt", **more)
    )


@pytest.fixture
def echo_repository(tmp_path: Path) -> Path:
    """A model repository with one Python model that returns its input."""
    model = tmp_path / "models" / "scratch_echo"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(ECHO_CONFIG)
    (model / "1" / "model.py").write_text(ECHO_MODEL)
    return model.parent


async def test_a_stopped_process_is_gone_with_its_children(tmp_path: Path) -> None:
    """Stopping takes the whole process group along, also one that ignores TERM."""
    code = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("up", flush=True)
        time.sleep(600)
    """
    log = tmp_path / "log.txt"

    async def up() -> bool:
        return "up" in log.read_text()

    process = sleeper(tmp_path, textwrap.dedent(code), ready=up, stop_grace_s=0.2)
    await process.start()
    pid = process.pid
    assert len(group_members(pid)) == 2
    assert await process.stop() == -signal.SIGKILL
    assert gone_within(pid, 10)


async def test_a_process_that_ends_at_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    """The error holds the exit status and the end of the log."""
    process = sleeper(tmp_path, "raise SystemExit('no such luck')", ready=_never)
    with pytest.raises(ProcessError, match=r"ended with status 1[\s\S]*no such luck"):
        await process.start()


async def test_a_program_that_does_not_exist_is_reported_by_name(tmp_path: Path) -> None:
    """The error names the program, not the guard that was to start it."""
    spec = ProcessSpec("ghost", ("/no/such/program",), tmp_path / "log.txt", ready=_never)
    with pytest.raises(ProcessError, match="cannot start /no/such/program"):
        await ManagedProcess(spec).start()


async def test_a_process_that_never_gets_ready_is_killed_and_the_check_quoted(
    tmp_path: Path,
) -> None:
    """When time is up nothing keeps running, and the last failure of the check is shown."""

    async def refuses() -> bool:
        raise ConnectionError("nobody home")

    process = sleeper(tmp_path, ready=refuses, ready_timeout_s=0.3)
    with pytest.raises(ProcessError, match="nobody home"):
        await process.start()
    assert not process.running
    assert gone_within(process.pid, 10)


async def test_a_suspended_process_can_be_stopped(tmp_path: Path) -> None:
    """A drill that suspended a server does not make it unstoppable."""
    process = await sleeper(tmp_path).start()
    process.signal(signal.SIGSTOP)
    assert await process.stop() == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """KILL on the launcher, which no handler can see, takes its processes along."""
    code = f"""
        import asyncio, sys, time
        from pathlib import Path
        from services.cli.embedded.process import ManagedProcess, ProcessSpec
        argv = (sys.executable, "-c", "import time; time.sleep(600)")
        process = ManagedProcess(ProcessSpec("sleeper", argv, Path({str(tmp_path / "log")!r})))
        asyncio.run(process.start())
        print(process.pid, flush=True)
        time.sleep(600)
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        pid = int(launcher.stdout.readline())
        assert group_members(pid)
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
    assert gone_within(pid, 10)


def test_a_launcher_that_just_exits_stops_what_it_started(tmp_path: Path) -> None:
    """An unhandled error in the launcher leaves nothing running."""
    code = f"""
        import asyncio, sys
        from pathlib import Path
        from services.cli.embedded.process import ManagedProcess, ProcessSpec
        argv = (sys.executable, "-c", "import time; time.sleep(600)")
        process = ManagedProcess(ProcessSpec("sleeper", argv, Path({str(tmp_path / "log")!r})))
        asyncio.run(process.start())
        print(process.pid, flush=True)
        raise SystemExit(3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, cwd=ROOT, check=False
    )
    assert done.returncode == 3
    assert gone_within(int(done.stdout), 10)


async def test_state_survives_a_kill_and_features_do_not(tmp_path: Path) -> None:
    """The state role writes an append-only file; the features role writes nothing."""
    for role, expected in (("state", b"kept"), ("features", None)):
        folder = tmp_path / role
        server = await Valkey(role, folder).start()
        client = redis.asyncio.Redis.from_url(server.url)
        config = await client.config_get("*")
        assert config["maxmemory-policy"] == "noeviction"
        await client.config_set("appendfsync", "always" if role == "state" else "no")
        await client.set("key", "kept")
        await client.aclose()
        server.signal(signal.SIGKILL)
        await server.stop()
        async with Valkey(role, folder) as again:
            client = redis.asyncio.Redis.from_url(again.url)
            assert await client.get("key") == expected
            await client.aclose()


async def test_valkey_is_not_ready_when_another_server_answers_on_its_port(tmp_path: Path) -> None:
    """A port that is taken is an error, not a silent use of someone else's server."""
    async with Valkey("features", tmp_path / "one") as first:
        with pytest.raises(ProcessError, match="Address already in use"):
            await Valkey("features", tmp_path / "two", port=first.port).start()


async def test_real_triton_answers_and_leaves_nothing_behind(
    tmp_path: Path, echo_repository: Path
) -> None:
    """Triton serves a Python model over both protocols, and goes with its stubs and its memory."""
    triton = Triton(TritonOptions(echo_repository, tmp_path / "run", TRITON_ENV))
    async with triton:
        pid = triton.pid
        body = {
            "inputs": [
                {"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}
            ]
        }
        url = f"{triton.http_url}/v2/models/scratch_echo/infer"
        async with aiohttp.ClientSession() as http, http.post(url, json=body) as reply:
            answer = await reply.json()
        assert answer["outputs"][0]["data"] == [1.5, -2.0]
        listening = listening_addresses(pid)
        assert listening
        assert {address for address, _ in listening} == {"127.0.0.1"}
    assert gone_within(pid, 15)
    assert not shared_memory(f"twinpath-{os.getpid()}-{triton.grpc_port}-")


async def test_real_triton_loads_models_on_request_only_when_told_so(
    tmp_path: Path, echo_repository: Path
) -> None:
    """With explicit control nothing is loaded unless it was named."""
    options = TritonOptions(echo_repository, tmp_path / "run", TRITON_ENV, control="explicit")
    async with Triton(options) as triton, aiohttp.ClientSession() as http:
        ready = f"{triton.http_url}/v2/models/scratch_echo/ready"
        async with http.get(ready) as reply:
            assert reply.status != 200
        async with http.post(f"{triton.http_url}/v2/repository/models/scratch_echo/load") as reply:
            assert reply.status == 200
        async with http.get(ready) as reply:
            assert reply.status == 200


async def test_a_model_that_does_not_load_is_reported_from_tritons_log(
    tmp_path: Path, echo_repository: Path
) -> None:
    """A broken model ends the start with Triton's own words."""
    (echo_repository / "scratch_echo" / "1" / "model.py").write_text("raise RuntimeError('tilt')")
    with pytest.raises(ProcessError, match="tilt"):
        await Triton(TritonOptions(echo_repository, tmp_path / "run", TRITON_ENV)).start()


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_tritons_stubs_go_when_the_launcher_is_killed(
    tmp_path: Path, echo_repository: Path
) -> None:
    """The helpers of a killed Triton end too: they watch their parent."""
    code = f"""
        import asyncio, time
        from pathlib import Path
        from services.cli.embedded.triton import Triton, TritonOptions
        options = TritonOptions(
            Path({str(echo_repository)!r}), Path({str(tmp_path / "run")!r}), Path({str(TRITON_ENV)!r})
        )
        triton = Triton(options)
        asyncio.run(triton.start())
        print(triton.pid, flush=True)
        time.sleep(600)
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        pid = int(launcher.stdout.readline())
        assert len(group_members(pid)) >= 2
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
    assert gone_within(pid, 60)


def shared_memory(prefix: str) -> list[str]:
    """Names of the shared memory segments that hold a prefix."""
    return [name for name in os.listdir("/dev/shm") if prefix in name]  # noqa: PTH208


def listening_addresses(pgid: int) -> set[tuple[str, int]]:
    """The addresses and ports that a process group listens on, mapped IPv4 ones as IPv4."""
    inodes = set()
    for pid in group_members(pgid):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(fd.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pgid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                ip = ipaddress.ip_address(b"".join(words))
                found.add((str(getattr(ip, "ipv4_mapped", None) or ip), int(port, 16)))
    return found


async def _never() -> bool:
    return False


def test_free_ports_are_free() -> None:
    """A port that was handed out can be bound."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", free_port()))
