"""Puts the local path together."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from itertools import zip_longest

from services.chassis.clock import Clock, SystemClock
from services.chassis.identity import read_public_keys
from services.chassis.metrics import shown
from services.chassis.run import Mount, Service
from services.local import shared
from services.local.artifacts import Artifacts
from services.local.contracts import Contracts
from services.local.control import Control
from services.local.control_servicer import ModelControlServicer
from services.local.fleet import Fleet
from services.local.install import Installer, Times
from services.local.item import Items
from services.local.metrics import TritonCounters
from services.local.models import Models
from services.local.replicas import Balancer, Replica
from services.local.servicer import LocalServicer
from services.local.settings import LocalSettings
from services.local.stream import Streams
from services.local.traffic import Traffic
from services.local.triton import Sharing, TritonServer
from services.local.usage import Price
from services.local.wire import Wire
from services.local.wishes import Wishes
from twinpath.inference.v1 import inference_pb2_grpc, model_control_pb2_grpc

log = logging.getLogger(__name__)

NAME = "twinpath.inference.v1.Inference"
CONTROL_NAME = "twinpath.inference.v1.ModelControl"


async def build(settings: LocalSettings, stack: AsyncExitStack) -> Service:
    """Create the clients and the servicer. Triton may be away; it is looked for all the time."""
    clock = SystemClock()
    replicas = []
    sharing = _share(settings, stack, clock)
    for url, door in zip_longest(settings.replicas, settings.doors):
        here = sharing if settings.is_loopback(url) else None
        wire = Wire(door) if door else None
        server = TritonServer(url, settings.max_message_bytes, here, wire)
        stack.push_async_callback(server.close)
        replicas.append(Replica(url, server))
    balancer = Balancer(replicas)
    keys = read_public_keys(settings.artifact_keys) if settings.artifact_keys else []
    artifacts, contracts = Artifacts(settings.models, keys), Contracts(settings.catalog)
    traffic = Traffic(explicit=settings.control == "explicit")
    models = Models(balancer, artifacts, contracts, clock, traffic=traffic)
    control = installer = None
    if traffic.explicit and settings.models is not None:
        times = Times(
            settings.load_timeout_s,
            settings.warm_up_timeout_s,
            settings.unload_drain_s,
            settings.refresh_s,
            settings.unload_grace_s,
        )
        installer = Installer(settings.models, artifacts, contracts, models, clock, times)
        wishes = Wishes(settings.control_file)
        control = Control(balancer, models, installer, contracts, wishes, clock, times)
    fleet = Fleet(
        balancer,
        models,
        clock,
        # Below the time that health gives a ping, so that silence is noted as such.
        ping_timeout_s=max(1.8 * settings.ping_interval_s, 0.9),
        refresh_s=settings.refresh_s,
        control=control,
    )
    price = Price(settings.machine_usd_per_hour, settings.machine_slots, settings.machine_watts)
    stack.enter_context(shown(TritonCounters(models.counters, price)))
    items = Items(
        fleet,
        clock,
        price,
        concurrency=settings.model_concurrency,
        waiting=settings.model_waiting,
        batch_requests=settings.batch_requests,
        traffic=traffic,
    )
    servicer = LocalServicer(items, Streams(items, fleet, clock), models, clock)
    mounts = [
        Mount(NAME, servicer, inference_pb2_grpc.add_InferenceServicer_to_server),
        Mount(
            CONTROL_NAME,
            ModelControlServicer(models, contracts, control, installer),
            model_control_pb2_grpc.add_ModelControlServicer_to_server,
        ),
    ]
    background = [fleet.watch] if control is None else [fleet.watch, control.watch]
    return Service(mounts, pings={"triton": fleet.ping}, background=background)


def _share(settings: LocalSettings, stack: AsyncExitStack, clock: Clock) -> Sharing | None:
    """Make the shared memory for replicas on this host, and remove what a crash left behind."""
    if not settings.shared_memory_from_bytes or not any(
        settings.is_loopback(url) for url in settings.replicas
    ):
        return None
    try:
        if gone := shared.sweep():
            log.info("removed shared memory of processes that are no more", extra={"files": gone})
        arena = shared.Arena(settings.shared_memory_bytes)
    except OSError as error:  # no /dev/shm: nothing is lost but speed
        log.warning("no shared memory", extra={"why": str(error)})
        return None
    stack.callback(arena.close)
    return Sharing(arena, settings.shared_memory_from_bytes, clock)
