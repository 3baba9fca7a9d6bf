"""The contract of the models' life, over explicit control."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc.aio

from services.chassis.errors import FailedPreconditionError, NotFoundError
from services.local.contracts import Contracts
from services.local.control import Control
from services.local.install import Installer
from services.local.models import WARMING, Known, Models
from services.local.traffic import Key
from twinpath.inference.v1 import model_control_pb2, model_control_pb2_grpc

Context = grpc.aio.ServicerContext
T = TypeVar("T")


class ModelControlServicer(model_control_pb2_grpc.ModelControlServicer):
    """Serves twinpath.inference.v1.ModelControl; `control` None: there is no explicit control."""

    def __init__(
        self,
        models: Models,
        contracts: Contracts,
        control: Control | None = None,
        installer: Installer | None = None,
    ) -> None:
        self._models = models
        self._contracts = contracts
        self._traffic = models.traffic
        self._control = control
        self._installer = installer
        self._tasks: set[asyncio.Task[Any]] = set()

    async def LoadModel(
        self, request: model_control_pb2.LoadModelRequest, context: Context
    ) -> model_control_pb2.LoadModelResponse:
        """Load a version beside the others, warm it up, let it serve."""
        control = self._must()
        took = await self._to_its_end(
            control.load(request.model, request.version, aside=request.aside)
        )
        state = await self._state((request.model, request.version))
        return model_control_pb2.LoadModelResponse(
            state=state, warm_up_us=took, pins=self._pins(request.model, request.version)
        )

    async def UnloadModel(
        self, request: model_control_pb2.UnloadModelRequest, context: Context
    ) -> model_control_pb2.UnloadModelResponse:
        """Drain a version and unload it."""
        control = self._must()
        left = await self._to_its_end(control.unload(request.model, request.version))
        state = await self._state((request.model, request.version))
        return model_control_pb2.UnloadModelResponse(state=state, cut_off=left)

    async def SetServing(
        self, request: model_control_pb2.SetServingRequest, context: Context
    ) -> model_control_pb2.SetServingResponse:
        """Let a loaded version serve; empty: the one before."""
        version, before = self._must().serve(request.model, request.version)
        state = await self._state((request.model, version))
        return model_control_pb2.SetServingResponse(
            state=state, before=before, pins=self._pins(request.model, version)
        )

    async def ModelStates(
        self, request: model_control_pb2.ModelStatesRequest, context: Context
    ) -> model_control_pb2.ModelStatesResponse:
        """Give every version on disk or in Triton, and what it does."""
        await self._models.refresh_anew()
        keys = {(known.name, known.version) for known in self._models.all() if known.version}
        if self._installer is not None:
            keys.update(await asyncio.to_thread(self._installer.on_disk))
        keys = {key for key in keys if request.model in ("", key[0])}
        if request.model and not keys:
            raise NotFoundError(
                "MODEL_UNKNOWN", "there is no such model here", metadata={"model": request.model}
            )
        order = sorted(keys, key=lambda key: (key[0], len(key[1]), key[1]))
        return model_control_pb2.ModelStatesResponse(
            states=[await self._state(key) for key in order], explicit=self._control is not None
        )

    def _pins(self, name: str, serving: str) -> list[model_control_pb2.Pin]:
        """Return who stays with another version than the one that serves now."""
        return [
            model_control_pb2.Pin(task=task, version=version)
            for task, version in self._contracts.pins(name)
            if version != serving
        ]

    def _must(self) -> Control:
        if self._control is None:
            raise FailedPreconditionError(
                "CONTROL_NOT_EXPLICIT",
                "this local path does not load models: TWINPATH_LOCAL_CONTROL is not explicit",
            )
        return self._control

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end, also when the caller goes away in the middle."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _state(self, key: Key) -> model_control_pb2.VersionState:
        known = self._models.known(*key)
        stage, reason = self._stage(key, known)
        if known is None and self._installer is not None:
            fault = await self._installer.fault(*key)
            if fault:
                stage, reason = model_control_pb2.STAGE_REFUSED, fault
        serving = self._models.serving(key[0])
        return model_control_pb2.VersionState(
            model=key[0],
            version=key[1],
            stage=stage,
            serving=key[1] == serving and stage == model_control_pb2.STAGE_READY,
            in_flight=self._traffic.busy(key),
            reason=reason,
        )

    def _stage(self, key: Key, known: Known | None) -> tuple[model_control_pb2.Stage, str]:
        if known is None:
            return model_control_pb2.STAGE_UNLOADED, ""
        if known.fault:
            return model_control_pb2.STAGE_REFUSED, known.fault
        if not self._traffic.takes(key):
            return model_control_pb2.STAGE_DRAINING, ""
        if known.serves:
            return model_control_pb2.STAGE_READY, ""
        if known.state in (WARMING, "LOADING"):
            return model_control_pb2.STAGE_WARMING, ""
        return model_control_pb2.STAGE_UNLOADED, " ".join(known.reason.split())[:300]
