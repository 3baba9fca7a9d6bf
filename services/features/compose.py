"""Puts the feature service together."""

from __future__ import annotations

from contextlib import AsyncExitStack

from services.chassis import telemetry
from services.chassis.clock import SystemClock
from services.chassis.run import Mount, Service
from services.features import store
from services.features.coalescer import Coalescer
from services.features.online import OnlineStore, trace_redis
from services.features.prepared import Live
from services.features.push import Pusher
from services.features.servicer import FeaturesServicer
from services.features.settings import FeaturesSettings
from services.features.validation import RuledRepo
from twinpath.features.v1 import features_pb2, features_pb2_grpc


async def build(settings: FeaturesSettings, stack: AsyncExitStack) -> Service:
    """Create the parts; neither Redis nor the registry need to be there yet."""
    if telemetry.tracing():
        trace_redis()
    online = OnlineStore(
        settings.url, settings.topology, settings.sentinel_master, settings.redis_timeout_s
    )
    stack.push_async_callback(online.close)
    coalescer = Coalescer(online.fetch_quietly, max_keys=settings.round_trip_keys)
    stack.push_async_callback(coalescer.close)
    repo = RuledRepo(store.FeastRepo(settings.repo), settings.repo / "validation")
    live = Live(repo, settings.refresh_interval_s)
    pusher = Pusher(online, store)
    servicer = FeaturesServicer(
        live,
        online,
        coalescer,
        store,
        SystemClock(),
        pusher,
        share_up_to=settings.share_up_to_keys,
    )
    name = features_pb2.DESCRIPTOR.services_by_name["Features"].full_name
    return Service(
        mounts=[Mount(name, servicer, features_pb2_grpc.add_FeaturesServicer_to_server)],
        pings={"redis": online.ping, "registry": live.ping},
        background=[live.watch],
    )
