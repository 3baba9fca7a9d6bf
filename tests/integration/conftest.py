"""One whole mesh for all integration tests that want it, on free ports, in a folder of its own.

    async def test_…(mesh: MeshUnderTest) -> None:
        async with mesh.router() as router:
            reply = await router.Infer(request(DIABETES))
        mesh.kill("audit")
        await mesh.start("audit")

`mesh` gives every test a mesh in which all runs: what a test killed is started again after it.
TWINPATH_TEST_HOME names a folder whose trained models are kept from run to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest

from services.cli.launcher.layout import laptop
from services.cli.launcher.mesh import Mesh, MeshOptions
from services.cli.launcher.readiness import wait_for
from services.cli.tracing.spans import Span
from services.local.usage import Meter
from tests.local_path import Door
from tests.support import ROOT, client
from twinpath.audit.v1 import audit_pb2_grpc
from twinpath.common.v1 import context_pb2, value_pb2
from twinpath.features.v1 import features_pb2_grpc
from twinpath.router.v1 import router_pb2, router_pb2_grpc

DIABETES = "diabetes_progression"
TUMOUR = "tumour_triage"
LOCAL = context_pb2.PATH_LOCAL
REMOTE = context_pb2.PATH_REMOTE
_SERVICES = ("features", "local", "remote", "audit", "router")
_RECOVERY_S = 60.0
_STUBS = {
    "router": router_pb2_grpc.RouterStub,
    "audit": audit_pb2_grpc.AuditStub,
    "features": features_pb2_grpc.FeaturesStub,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give whoever comes first the time that the mesh's start takes: data, models, servers."""
    for item in items:
        if "session_mesh" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))


def request(task: str = DIABETES, patient_id: int = 17, **more: Any) -> router_pb2.InferRequest:
    """A request about a patient; `more` are fields of the message."""
    entity = {"patient_id": value_pb2.Value(int64_value=patient_id)}
    return router_pb2.InferRequest(task=task, entity=entity, **more)


class MeshUnderTest:
    """A running mesh: its processes to kill, its services to call, its spans to read."""

    def __init__(self, mesh: Mesh) -> None:
        self.launcher = mesh

    def address(self, service: str) -> str:
        """host:port of a service."""
        return self.launcher.wiring.services[service]

    def token(self, role: str) -> str:
        """A role's or a service's token: `caller`, `auditor`, `service:router`, ..."""
        return self.launcher.token(role)

    def channel(
        self, service: str, role: str
    ) -> contextlib.AbstractAsyncContextManager[grpc.aio.Channel]:
        """A channel to a service as a role; the role "" sends no token."""
        return client(self.address(service), self.token(role) if role else "")

    def router_channel(
        self, role: str = "caller"
    ) -> contextlib.AbstractAsyncContextManager[grpc.aio.Channel]:
        """A channel to the router."""
        return self.channel("router", role)

    @contextlib.asynccontextmanager
    async def stub(self, service: str, role: str) -> AsyncIterator[Any]:
        """A stub of router, audit or features."""
        async with self.channel(service, role) as channel:
            yield _STUBS[service](channel)

    @contextlib.asynccontextmanager
    async def router(self, role: str = "caller") -> AsyncIterator[router_pb2_grpc.RouterStub]:
        """A stub of the router."""
        async with self.stub("router", role) as stub:
            yield stub

    def kill(self, name: str) -> None:
        """Kill a process, as a crash would."""
        self.launcher.kill(name)

    async def stop(self, name: str) -> None:
        """Stop a process in an orderly way."""
        await self.launcher.stop_one(name)

    async def start(self, name: str) -> None:
        """Start a process that was killed or stopped; ready when this returns."""
        await self.launcher.start_one(name)

    async def serving(self, name: str, *, want: bool = True) -> bool:
        """Wait until a service's health is SERVING, or is not."""
        return await wait_for(self.launcher.health_of(name), timeout_s=_RECOVERY_S, want=want)

    async def answers(self, task: str = DIABETES, **more: Any) -> router_pb2.InferResponse:
        """Ask until the router answers; the last error is raised when that takes too long."""
        async with self.router() as router:
            end = asyncio.get_running_loop().time() + _RECOVERY_S
            while True:
                try:
                    reply: router_pb2.InferResponse = await router.Infer(
                        request(task, **more), timeout=5
                    )
                except grpc.aio.AioRpcError:
                    if asyncio.get_running_loop().time() > end:
                        raise
                    await asyncio.sleep(0.2)
                else:
                    return reply

    async def whole(self) -> None:
        """Start what does not run, clear the stand-in vendor's faults, wait until all answers."""
        dead = [n for n, process in self.launcher.processes.items() if not process.running]
        for name in dead:
            await self.start(name)
        if "features-store" in dead:
            await self.launcher.fill_store()
        await self.faults()
        for name in _SERVICES:
            assert await self.serving(name), f"{name} did not come back: {self.log(name)}"
        for path in (LOCAL, REMOTE):
            await self.answers(only_path=path)

    def log(self, name: str) -> str:
        """The last lines of a process's log."""
        return self.launcher.processes[name].log_tail()

    async def faults(self, *rules: dict[str, Any]) -> None:
        """Put faults in force at the stand-in vendor; none: no more."""
        async with (
            aiohttp.ClientSession(self.launcher.standin_admin, trust_env=False) as http,
            http.put("/admin/faults", json=list(rules)) as reply,
        ):
            assert reply.status == 204, await reply.text()

    async def standin(self, path: str = "/admin/counters") -> Any:
        """What the stand-in vendor's admin endpoint says."""
        async with (
            aiohttp.ClientSession(self.launcher.standin_admin, trust_env=False) as http,
            http.get(path) as reply,
        ):
            return await reply.json()

    async def spans(self, trace_id: str, services: set[str], within_s: float = 15) -> list[Span]:
        """The spans of a trace, once these services have sent theirs, or when time is up."""
        assert self.launcher.collector is not None
        end = asyncio.get_running_loop().time() + within_s
        while True:
            spans = self.launcher.collector.spans.trace(trace_id)
            complete = services <= {span.service for span in spans}
            if complete or asyncio.get_running_loop().time() > end:
                return spans
            await asyncio.sleep(0.2)


@pytest.fixture(scope="session")
def mesh_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the session's mesh; what `TWINPATH_HOME` names for a client of it."""
    return tmp_path_factory.mktemp("mesh")


@pytest.fixture(scope="session")
def session_mesh(mesh_home: Path) -> Iterator[MeshUnderTest]:
    """The session's mesh, started once. Tests take `mesh`, which keeps it whole."""
    with started_mesh(mesh_home) as mesh:
        yield mesh


@contextlib.contextmanager
def started_mesh(folder: Path, *, edge: bool = False) -> Iterator[MeshUnderTest]:
    """Start a mesh in a folder, and stop it at the end; data and models are made there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    repo = folder / "feature_repo"
    shutil.copytree(
        ROOT / "feature_repo", repo, ignore=shutil.ignore_patterns("data", "__pycache__")
    )
    (repo / "data").mkdir()
    home = Path(os.environ.get("TWINPATH_TEST_HOME", folder))
    layout = replace(laptop(home, os.environ, runtime=folder), feature_repo=repo)
    options = MeshOptions(
        layout,
        edge=edge,
        standin_latency_ms=0,
        standin_jitter_ms=0,
        environment={**kept, "TWINPATH_DRAIN_S": "1", "TWINPATH_PING_INTERVAL_S": "0.2"},
    )
    mesh = Mesh(options)
    asyncio.run(mesh.start())
    try:
        yield MeshUnderTest(mesh)
    finally:
        asyncio.run(mesh.stop())


@pytest.fixture
async def mesh(session_mesh: MeshUnderTest) -> AsyncIterator[MeshUnderTest]:
    """A mesh in which everything runs, before the test and again after it."""
    dead = [n for n, p in session_mesh.launcher.processes.items() if not p.running]
    assert not dead, f"{dead} ended by themselves: {[session_mesh.log(name) for name in dead]}"
    # Another test may have starved it: a connection that was given up is made again meanwhile.
    for name in _SERVICES:
        assert await session_mesh.serving(name), f"{name} is not well: {session_mesh.log(name)}"
    pids = _pids(session_mesh)
    yield session_mesh
    if _pids(session_mesh) != pids or any(
        not process.running for process in session_mesh.launcher.processes.values()
    ):
        await session_mesh.whole()
    else:
        await session_mesh.faults()


def _pids(mesh: MeshUnderTest) -> dict[str, int]:
    return {name: process.pid for name, process in mesh.launcher.processes.items()}


@pytest.fixture(params=["gRPC", "HTTP"])
def door(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Door:
    """Settings with which all small requests go by one of Triton's doors, from the first one on."""
    if request.param == "gRPC":
        return lambda _: {}
    monkeypatch.setattr(Meter, "is_quick", property(lambda _: True))
    return lambda server: {"triton_http": server.http_address}
