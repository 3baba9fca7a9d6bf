"""Puts the feature service together."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from services.chassis import telemetry
from services.chassis.clock import SystemClock
from services.chassis.run import Mount, Service
from services.features import store
from services.features.coalescer import Coalescer
from services.features.lineage_events import LineageEvents
from services.features.online import OnlineStore, trace_redis
from services.features.prepared import Live
from services.features.push import Pusher
from services.features.sampling import Sampler, SamplingOptions
from services.features.servicer import FeaturesServicer
from services.features.settings import FeaturesSettings
from services.features.stream import StreamConsumer, StreamOptions
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
    coalescer = Coalescer(online.fetch, max_keys=settings.round_trip_keys)
    stack.push_async_callback(coalescer.close)
    repo = RuledRepo(store.FeastRepo(settings.repo), settings.repo / "validation")
    replica = f"{socket.gethostname()}/{settings.listen}"
    file = settings.lineage_file or settings.repo / "data" / "openlineage.jsonl"
    lineage = LineageEvents(file, SystemClock(), replica, settings.lineage_interval_s)
    stack.push_async_callback(lineage.close)
    live = Live(repo, settings.refresh_interval_s, lineage.in_force)
    pusher = Pusher(online, store)
    background: list[Callable[[], Awaitable[None]]] = [live.watch, lineage.run]
    if settings.stream:
        background.append(_consumer(settings, online, live, pusher).run)
    sampler = None
    if settings.samples is not None:
        sampler = Sampler(_sampling(settings, settings.samples))
        stack.push_async_callback(sampler.flush)
        background.append(sampler.run)
    servicer = FeaturesServicer(
        live,
        online,
        coalescer,
        store,
        SystemClock(),
        pusher,
        share_up_to=settings.share_up_to_keys,
        sampler=sampler,
        lineage=lineage,
    )
    name = features_pb2.DESCRIPTOR.services_by_name["Features"].full_name
    return Service(
        mounts=[Mount(name, servicer, features_pb2_grpc.add_FeaturesServicer_to_server)],
        pings={"redis": online.ping, "registry": live.ping},
        background=background,
    )


def _consumer(
    settings: FeaturesSettings, online: OnlineStore, live: Live, pusher: Pusher
) -> StreamConsumer:
    options = StreamOptions(
        name=settings.stream,
        group=settings.stream_group,
        # The same after a restart, so that a group does not fill up with the dead.
        consumer=f"{socket.gethostname()}/{settings.listen}",
        claim_after_s=settings.stream_claim_after_s,
        block_s=min(0.4, settings.redis_timeout_s / 2),
    )
    return StreamConsumer(lambda: online.client, live, pusher, options)


def _sampling(settings: FeaturesSettings, folder: Path) -> SamplingOptions:
    key = settings.sample_key_file
    return SamplingOptions(
        folder=folder,
        share=settings.sample_share,
        files=settings.sample_files,
        key=key.read_bytes().strip() if key is not None else b"",
        restricted=settings.sample_restricted,
        interval_s=settings.sample_interval_s,
    )
