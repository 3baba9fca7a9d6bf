"""Puts the local path together."""

from __future__ import annotations

from contextlib import AsyncExitStack

from services.chassis.clock import SystemClock
from services.chassis.identity import read_public_keys
from services.chassis.run import Mount, Service
from services.local.artifacts import Artifacts
from services.local.contracts import Contracts
from services.local.fleet import Fleet
from services.local.item import Items
from services.local.models import Models
from services.local.replicas import Balancer, Replica
from services.local.servicer import LocalServicer
from services.local.settings import LocalSettings
from services.local.stream import Streams
from services.local.triton import TritonServer
from services.local.usage import Price
from twinpath.inference.v1 import inference_pb2_grpc

NAME = "twinpath.inference.v1.Inference"


async def build(settings: LocalSettings, stack: AsyncExitStack) -> Service:
    """Create the clients and the servicer. Triton may be away; it is looked for all the time."""
    clock = SystemClock()
    replicas = []
    for url in settings.replicas:
        server = TritonServer(url, settings.max_message_bytes)
        stack.push_async_callback(server.close)
        replicas.append(Replica(url, server))
    balancer = Balancer(replicas)
    keys = read_public_keys(settings.artifact_keys) if settings.artifact_keys else []
    models = Models(balancer, Artifacts(settings.models, keys), Contracts(settings.catalog), clock)
    fleet = Fleet(
        balancer,
        models,
        clock,
        # Below the time that health gives a ping, so that silence is noted as such.
        ping_timeout_s=max(1.8 * settings.ping_interval_s, 0.9),
        refresh_s=settings.refresh_s,
    )
    items = Items(
        fleet,
        clock,
        Price(settings.machine_usd_per_hour, settings.machine_slots),
        concurrency=settings.model_concurrency,
        waiting=settings.model_waiting,
    )
    servicer = LocalServicer(items, Streams(items, fleet, clock), models, clock)
    mount = Mount(NAME, servicer, inference_pb2_grpc.add_InferenceServicer_to_server)
    return Service([mount], pings={"triton": fleet.ping}, background=[fleet.watch])
