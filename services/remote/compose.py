"""The composition root: which parts the remote service is made of."""

from __future__ import annotations

from contextlib import AsyncExitStack

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.chassis.clock import Clock, SystemClock
from services.chassis.identity import read_public_keys
from services.chassis.run import Mount, Service
from services.remote import catalog, providers
from services.remote.bulk import Bulk
from services.remote.bulk_jobs import Jobs
from services.remote.bulk_servicer import RemoteBulk
from services.remote.door import Door
from services.remote.grants import GrantVerifier, UsedGrants
from services.remote.limit_store import LocalStore, RedisStore
from services.remote.limits import Limits
from services.remote.servicer import RemoteInference
from services.remote.settings import RemoteSettings
from services.remote.vendors import Vendor, Vendors
from twinpath.inference.v1 import bulk_pb2_grpc, inference_pb2_grpc

_JOBS_TIMEOUT_S = 5.0  # nobody waits for a job by the millisecond


async def build(settings: RemoteSettings, stack: AsyncExitStack) -> Service:
    """Put the service together. Vendors need not be there yet.

    Raises:
        CatalogError: A provider file is wrong; with file, line and rule.
        ValueError: The file of grant keys holds no key.
    """
    clock = SystemClock()
    vendors = {}
    for name, provider in catalog.load(settings.catalog, providers.mistakes).items():
        adapter = providers.make(provider, clock, settings.max_answer_bytes)
        stack.push_async_callback(adapter.aclose)
        vendors[name] = Vendor(provider, adapter)
    known = Vendors(vendors, clock, settings.probe_interval_s)
    verifier = GrantVerifier(
        read_public_keys(settings.grant_keys),
        clock,
        settings.grant_lifetime_s,
        settings.grant_leeway_s,
    )
    used = UsedGrants(clock, settings.grant_memory, settings.grant_leeway_s)
    door = Door(known, verifier, used, _limits(settings, clock, stack))
    inference = Mount(
        "twinpath.inference.v1.Inference",
        RemoteInference(known, door),
        inference_pb2_grpc.add_InferenceServicer_to_server,
    )
    bulk = Mount(
        "twinpath.inference.v1.Bulk",
        RemoteBulk(Bulk(known, door, _jobs(settings, stack), clock)),
        bulk_pb2_grpc.add_BulkServicer_to_server,
    )
    return Service(mounts=[inference, bulk], pings={"vendors": known.ping})


def _limits(settings: RemoteSettings, clock: Clock, stack: AsyncExitStack) -> Limits:
    local = LocalStore(clock)
    if settings.state_url is None:
        return Limits(local)
    client = redis.asyncio.Redis.from_url(
        settings.state_url,
        socket_timeout=settings.state_timeout_s,
        socket_connect_timeout=settings.state_timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    stack.push_async_callback(client.aclose)
    store = RedisStore(client, local, clock, settings.state_timeout_s)
    stack.push_async_callback(store.aclose)
    limits = Limits(store, shared=True)
    stack.push_async_callback(limits.aclose)
    return limits


def _jobs(settings: RemoteSettings, stack: AsyncExitStack) -> Jobs:
    if settings.state_url is None:
        return Jobs(None)
    client = redis.asyncio.Redis.from_url(settings.state_url, socket_timeout=_JOBS_TIMEOUT_S)
    stack.push_async_callback(client.aclose)
    return Jobs(client)
