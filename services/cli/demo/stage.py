"""What the points of the demo act on: a running mesh, as a caller, an auditor and a saboteur."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import aiohttp
import grpc
from opentelemetry import trace
from ruamel.yaml import YAML

from services.chassis.errors import ServiceError, from_rpc_error
from services.cli import description
from services.cli.client import Connection
from services.cli.launcher.mesh import Mesh
from twinpath.audit.v1 import audit_pb2_grpc
from twinpath.common.v1 import context_pb2, decision_pb2, value_pb2
from twinpath.router.v1 import router_pb2, router_pb2_grpc

_POLL_S = 0.2
_PATIENCE_S = 30.0
_tracer = trace.get_tracer(__name__)

DIABETES = "diabetes_progression"
TUMOUR = "tumour_triage"
PATIENT = 17
BMI_NOW = 27.5


class Stage:
    """A running mesh and all that the points do with it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._stack = AsyncExitStack()
        self.router: Any = None
        self.audit: Any = None

    async def __aenter__(self) -> Self:
        """Open the channels."""
        connection = Connection(description.read(self.mesh.layout.run))
        router = connection.channel("router", role="caller", deadline_s=10)
        audit = connection.channel("audit", role="auditor", deadline_s=10)
        self.router = router_pb2_grpc.RouterStub(await self._stack.enter_async_context(router))
        self.audit = audit_pb2_grpc.AuditStub(await self._stack.enter_async_context(audit))
        self._http = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                self.mesh.standin_admin, timeout=aiohttp.ClientTimeout(total=5), trust_env=False
            )
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the channels."""
        await self._stack.aclose()

    # ---- as a caller --------------------------------------------------------------------------

    async def infer(
        self, task: str, *, only_path: int = 0, data_class: int = 0
    ) -> router_pb2.InferResponse:
        """Make a decision about the one patient.

        Raises:
            ServiceError: The mesh said no.
        """
        request = request_for(task, only_path=only_path, data_class=data_class)
        with _tracer.start_as_current_span("twinpath demo"):
            try:
                reply: router_pb2.InferResponse = await self.router.Infer(request)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
        return reply

    async def refusal(self, task: str, **how: int) -> ServiceError | None:
        """Ask for a decision that must be refused; None if it was made after all."""
        try:
            await self.infer(task, **how)
        except ServiceError as error:
            return error
        return None

    async def plan(self, task: str) -> decision_pb2.Plan:
        """The plan as it is now; empty if even that is refused."""
        request = router_pb2.ExplainRequest(request=request_for(task))
        try:
            reply: router_pb2.ExplainResponse = await self.router.Explain(request)
        except grpc.RpcError:
            return decision_pb2.Plan()
        return reply.plan

    async def until_first(self, task: str, path: int) -> bool:
        """Wait until a path is the plan's first; False if it does not become so."""

        async def first() -> bool:
            plan = await self.plan(task)
            return any(e.rank == 1 and e.candidate.path == path for e in plan.entries)

        return await patiently(first)

    async def until_left_out(self, task: str, path: int) -> bool:
        """Ask until the router has noticed, and its plan leaves a path out for its health."""

        async def left_out() -> bool:
            await self.refusal(task)
            kinds = {
                refusal.kind
                for entry in (await self.plan(task)).entries
                if entry.candidate.path == path
                for refusal in entry.refusals
            }
            return decision_pb2.REFUSAL_KIND_HEALTH in kinds

        return await patiently(left_out)

    async def until_answered(self, task: str, path: int) -> router_pb2.InferResponse | None:
        """Ask until a path answers again: breakers let a probe through now and then."""
        found: list[router_pb2.InferResponse] = []

        async def answered() -> bool:
            with contextlib.suppress(ServiceError):
                found.append(await self.infer(task, only_path=path))
            return bool(found)

        await patiently(answered)
        return found[0] if found else None

    # ---- as an operator -----------------------------------------------------------------------

    async def prefer(self, task: str, path: int) -> bool:
        """Put a path's candidates first in the task's file; the router reads it again by itself."""
        file = self.mesh.layout.catalog / "tasks" / f"{task}.yaml"
        yaml = YAML(typ="rt")
        data = yaml.load(file.read_text(encoding="utf-8"))
        wanted = "local" if path == context_pb2.PATH_LOCAL else "remote"
        data["candidates"].sort(key=lambda candidate: candidate["path"] != wanted)
        part = file.with_suffix(".part")
        with part.open("w", encoding="utf-8") as out:
            yaml.dump(data, out)
        part.replace(file)
        return await self.until_first(task, path)

    # ---- as the stand-in vendor's own people ----------------------------------------------------

    async def counters(self) -> dict[str, Any]:
        """What the stand-in vendor counted by itself."""
        async with self._http.get("/admin/counters") as reply:
            found: dict[str, Any] = await reply.json()
            return found

    async def last_request(self) -> Mapping[str, Any]:
        """The newest request with a body, as it arrived at the stand-in vendor."""
        async with self._http.get("/admin/log?limit=1") as reply:
            entries = (await reply.json())["entries"]
        return entries[-1] if entries else {}

    async def faults(self, *rules: Mapping[str, Any]) -> None:
        """Put faults in force at the stand-in vendor; none: all is well again."""
        async with self._http.put("/admin/faults", json=list(rules)) as reply:
            reply.raise_for_status()


def request_for(task: str, *, only_path: int = 0, data_class: int = 0) -> router_pb2.InferRequest:
    """A request about the one patient that the whole demo is about."""
    request = router_pb2.InferRequest(
        task=task, entity={"patient_id": value_pb2.Value(int64_value=PATIENT)}, include_plan=True
    )
    if task == DIABETES:
        request.fields["bmi_now"].double_value = BMI_NOW
    request.only_path = only_path  # type: ignore[assignment]
    request.data_class = data_class  # type: ignore[assignment]
    return request


async def patiently(what: Callable[[], Awaitable[bool]]) -> bool:
    """Ask until it is so; False when half a minute is over."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        if await what():
            return True
        await asyncio.sleep(_POLL_S)
    return False
