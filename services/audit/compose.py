"""Puts the audit service together."""

from __future__ import annotations

from contextlib import AsyncExitStack

from services.audit.house import House
from services.audit.servicer import AuditServicer
from services.audit.settings import AuditSettings
from services.chassis.clock import Clock, SystemClock
from services.chassis.run import Mount, Service
from twinpath.audit.v1 import audit_pb2_grpc

NAME = "twinpath.audit.v1.Audit"


async def build(
    settings: AuditSettings, stack: AsyncExitStack, clock: Clock | None = None
) -> Service:
    """Open the log, if it can be opened, and mount the servicer."""
    house = House(settings, clock or SystemClock())
    stack.push_async_callback(house.close)
    await house.open()
    return Service(
        mounts=[Mount(NAME, AuditServicer(house), audit_pb2_grpc.add_AuditServicer_to_server)],
        pings={"log": house.ping},
        background=[house.run],
    )
