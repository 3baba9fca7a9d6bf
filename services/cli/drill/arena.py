"""The mesh that a drill breaks: one of its own, with a slow model in it and a bad network ready.

Between the remote service and the stand-in vendor stands a TCP fault proxy. The catalog is a copy,
because drills move preferences and the positive control switches the policy off.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from ruamel.yaml import YAML

from services.cli.demo.stage import DIABETES, Stage
from services.cli.description import home
from services.cli.drill.faultproxy import FaultProxy, Faults
from services.cli.drill.mix import DEFAULTED, SLOW
from services.cli.embedded.ports import LOOPBACK
from services.cli.launcher import ground
from services.cli.launcher.layout import Layout, laptop
from services.cli.launcher.mesh import Mesh, MeshOptions
from services.cli.launcher.progress import Progress
from services.cli.launcher.readiness import wait_for
from twinpath.common.v1 import context_pb2

SLOW_S = 0.02  # what one inference of the slow model takes; it makes one at a time
_RECOVERY_S = 60.0
_SERVICES = ("audit", "features", "local", "remote", "router")
_LOG_ENTRIES = 500_000

_SLOW_MODEL = f'''"""Takes {SLOW_S * 1e3:g} ms an inference, one at a time: a known capacity."""

import time

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    """Answers a constant."""

    def execute(self, requests):
        """Take each request in turn."""
        answers = []
        for request in requests:
            rows = pb.get_input_tensor_by_name(request, "features").as_numpy().shape[0]
            time.sleep({SLOW_S} * rows)
            out = pb.Tensor("progression", np.full((rows, 1), 150.0, np.float32))
            answers.append(pb.InferenceResponse([out]))
        return answers
'''
_SLOW_CONFIG = f"""name: "{SLOW}"
backend: "python"
max_batch_size: 1
input {{ name: "features" data_type: TYPE_FP32 dims: [ 13 ] }}
output {{ name: "progression" data_type: TYPE_FP32 dims: [ 1 ] }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


class Arena:
    """A running mesh and the means to break and mend it. Use with `async with`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stack = AsyncExitStack()
        self._folder = Path()
        self.store_lost = False  # the feature store was killed: it came back empty
        self.vendor_network: FaultProxy
        self.mesh: Mesh
        self.stage: Stage

    async def __aenter__(self) -> Self:
        """Start everything.

        Raises:
            GroundError: and what else `Mesh.start` raises.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything; the folder with the logs stays only if something was raised."""
        await self._stack.aclose()
        if error is None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _start(self) -> None:
        (home() / "drills").mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="mesh-", dir=home() / "drills"))
        layout = laptop(home(), os.environ, runtime=self._folder)
        layout = await asyncio.to_thread(_own_copies, layout)
        await ground.make_data(layout, self._progress)
        await ground.make_models(layout, self._progress)
        layout = replace(layout, models=self._folder / "models")
        await asyncio.to_thread(_add_slow_model, layout)
        vendor_port = self._reserved_port()
        self.vendor_network = await self._stack.enter_async_context(
            FaultProxy((LOOPBACK, vendor_port))
        )
        extra = {
            "standin": {
                "TWINPATH_STANDIN_PORT": str(vendor_port),
                "TWINPATH_STANDIN_LOG_ENTRIES": str(_LOG_ENTRIES),
                "TWINPATH_STANDIN_LOG_BYTES": str(2**30),
            },
            "remote": {"TWINPATH_STANDIN_URL": f"http://{LOOPBACK}:{self.vendor_network.port}"},
        }
        options = MeshOptions(
            layout, tracing=False, standin_latency_ms=10, standin_jitter_ms=5, extra=extra
        )
        self.mesh = Mesh(options, self._progress)
        self._stack.push_async_callback(self.mesh.stop)
        await self.mesh.start()
        self.stage = await self._stack.enter_async_context(Stage(self.mesh))
        self._http = await self._stack.enter_async_context(
            aiohttp.ClientSession(self.mesh.standin_admin, trust_env=False)
        )

    def _reserved_port(self) -> int:
        """A port that nobody else is given: bound here, and listened on by who reuses it."""
        holder = self._stack.enter_context(socket.socket())
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((LOOPBACK, 0))
        port: int = holder.getsockname()[1]
        return port

    @property
    def catalog(self) -> Path:
        """The catalog in force; a copy."""
        return self.mesh.layout.catalog

    async def whole(self) -> None:
        """Mend everything and wait until both paths answer.

        Raises:
            RuntimeError: it did not become whole.
        """
        await self.vendor_network.apply(Faults())
        await self.stage.faults()
        for name, process in self.mesh.processes.items():
            if not process.running:
                await self.mesh.start_one(name)
        if self.store_lost:
            await self.mesh.fill_store()
            self.store_lost = False
        for name in _SERVICES:
            if not await wait_for(self.mesh.health_of(name), timeout_s=_RECOVERY_S):
                raise RuntimeError(
                    f"{name} did not come back: {self.mesh.processes[name].log_tail()}"
                )
        for path in (context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE):
            if await self.stage.until_answered(DIABETES, path) is None:
                raise RuntimeError(f"{context_pb2.Path.Name(path)} did not come back")

    async def vendor_log(self) -> list[Mapping[str, Any]]:
        """Every request with a body that the stand-in vendor received since it forgot."""
        async with self._http.get(f"/admin/log?limit={_LOG_ENTRIES}") as reply:
            entries: list[Mapping[str, Any]] = (await reply.json())["entries"]
            return entries

    async def forget(self) -> None:
        """Let the stand-in vendor forget its log and counters."""
        async with self._http.delete("/admin/log") as reply:
            reply.raise_for_status()


def _own_copies(layout: Layout) -> Layout:
    """Copy what this mesh will change: the catalog, and the Feast repo with its registry."""
    catalog, repo = layout.runtime / "catalog", layout.runtime / "feature_repo"
    shutil.copytree(layout.catalog, catalog)
    shutil.copytree(
        layout.feature_repo, repo, ignore=shutil.ignore_patterns("__pycache__", "registry.db")
    )
    (repo / "data").mkdir(exist_ok=True)
    yaml = YAML(typ="rt")
    base = (catalog / "tasks" / f"{DIABETES}.yaml").read_text(encoding="utf-8")
    slow = yaml.load(base)
    slow["candidates"] = [{"id": SLOW, "path": "local", "model": SLOW, "version": "1"}]
    defaulted = yaml.load(base)
    rule = defaulted["missing_features"]
    rule["store_away"] = rule["absent_entity"] = "default"
    for spec in defaulted["inputs"]:
        for source in spec["from"]:
            rule["defaults"].setdefault(source, 1.0)
    for name, task in ((SLOW, slow), (DEFAULTED, defaulted)):
        task["name"], task["summary"] = name, "A task of the drills."
        with (catalog / "tasks" / f"{name}.yaml").open("w", encoding="utf-8") as out:
            yaml.dump(task, out)
    return replace(layout, catalog=catalog, feature_repo=repo)


def _add_slow_model(layout: Layout) -> None:
    assert layout.models is not None
    shutil.copytree(layout.trained, layout.models)
    version = layout.models / SLOW / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(_SLOW_MODEL, encoding="utf-8")
    (layout.models / SLOW / "config.pbtxt").write_text(_SLOW_CONFIG, encoding="utf-8")
