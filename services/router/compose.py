"""Puts the router together: settings, then clients, then pipeline, then servicer."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import metadata

import grpc.aio
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.chassis.call import Call
from services.chassis.channels import connect
from services.chassis.clock import SystemClock
from services.chassis.errors import UnavailableError
from services.chassis.files import read_key
from services.chassis.metrics import shown
from services.chassis.run import Mount, Service
from services.router import metrics
from services.router.admission import Admission
from services.router.attempt import Attempter
from services.router.batch import Batches
from services.router.board import Board
from services.router.cache import ResponseCache
from services.router.catalog import Catalog, CatalogKeeper
from services.router.clients import (
    AuditClient,
    BulkClient,
    FeaturesClient,
    InferenceClient,
    RedisClaims,
)
from services.router.decision import is_keyed
from services.router.dispatch import Dispatcher
from services.router.grants import GrantSigner
from services.router.job_items import JobItems
from services.router.job_store import JobStore
from services.router.job_work import JobWork
from services.router.jobs import Jobs
from services.router.jobs_servicer import JobsServicer
from services.router.limiter import Limiter, LimiterConfig
from services.router.metrics import RouterState
from services.router.outbox import Outbox, OutboxAudit
from services.router.overrides import Overrides
from services.router.pipeline import Pipeline
from services.router.ports import Audit, Inference
from services.router.pseudonyms import Pseudonyms
from services.router.quotas import OwnBuckets, Quotas
from services.router.releases import split_key
from services.router.replay import Replays
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings
from services.router.spare import Spare
from services.router.state_store import StateStore
from services.router.steps import CatalogView, Steps
from services.router.streams import Streams
from twinpath.audit.v1 import audit_pb2
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import jobs_pb2_grpc, router_pb2_grpc


def may_wait(catalog: Catalog, entry: audit_pb2.Entry) -> bool:
    """Tell whether an entry may wait in the outbox: its task allows it, nothing is restricted.

    One with an idempotency key may not: that the first OUTCOME wins, only the log can say.
    """
    if is_keyed(entry.record.decision_id):
        return False
    task = catalog.tasks.get(entry.record.task)
    restricted = entry.record.data_class >= context_pb2.DATA_CLASS_RESTRICTED
    return task is not None and task.audit_outage == "outbox" and not restricted


async def build(settings: RouterSettings, stack: AsyncExitStack) -> Service:
    """Build the router. A broken catalog at the start is an error: there is no last good one."""
    clock = SystemClock()
    keeper = CatalogKeeper(settings.catalog, settings.refresh_s)
    signer = GrantSigner.from_file(settings.grant_key, clock)

    async def channel(address: str) -> grpc.aio.Channel:
        return await stack.enter_async_context(connect(address, settings))

    features_channel = await channel(settings.features_address)
    audit_channel = await channel(settings.audit_address)
    remote_channel = await channel(settings.remote_address)
    paths: dict[str, Inference] = {
        "local": InferenceClient(
            await channel(settings.local_address),
            "local",
            clock,
            coalesce=True,
            max_message_bytes=settings.max_message_bytes,
        ),
        "remote": InferenceClient(remote_channel, "remote", clock, coalesce=False),
    }
    state = redis.asyncio.Redis.from_url(
        settings.state_url,
        socket_timeout=1.0,
        socket_connect_timeout=1.0,
        retry=Retry(NoBackoff(), 0),  # retries are the router's own decision
    )
    stack.push_async_callback(state.aclose)
    board = Board(paths, clock, settings.refresh_s)

    def catalog() -> CatalogView:
        return CatalogView(keeper.catalog, stale=bool(keeper.stale_reason))

    audit: Audit = AuditClient(audit_channel, clock, settings.max_message_bytes)
    background: list[Callable[[], Awaitable[None]]] = []
    if settings.outbox is not None:
        outbox = Outbox(settings.outbox, clock, max_bytes=settings.outbox_bytes)
        stack.push_async_callback(outbox.close)
        behind = OutboxAudit(audit, outbox, lambda entry: may_wait(keeper.catalog, entry))
        background.append(lambda: behind.watch(settings.refresh_s))
        audit = behind
    overrides = Overrides(state, audit, board, clock)
    code_version = metadata.version("twinpath")
    pseudonyms = None
    if settings.pseudonym_key is not None:
        pseudonyms = Pseudonyms(read_key(settings.pseudonym_key))
    shared_secret = split_key((settings.split_key or settings.grant_key).read_bytes())
    steps = Steps(
        catalog=catalog,
        features=FeaturesClient(features_channel, clock),
        audit=audit,
        board=board,
        clock=clock,
        code_version=code_version,
        random=random.random,
        pseudonyms=pseudonyms,
        split_key=shared_secret,
    )
    limits = LimiterConfig(
        initial=min(128, settings.max_in_flight),
        minimum=min(32, settings.max_in_flight),
        maximum=settings.max_in_flight,
    )
    spare = Spare(clock, settings.batch_beside)
    admission = Admission(Limiter(limits), clock, spare)
    stack.enter_context(shown(RouterState(board, admission.limiter)))
    claims = RedisClaims(state)
    store = StateStore(state, clock)
    cache = None
    if settings.cache_key is not None:
        cache = ResponseCache(store, read_key(settings.cache_key))
    attempter = Attempter(paths, board, signer, clock, cache)
    quotas = Quotas(store, OwnBuckets(clock))
    dispatcher = Dispatcher(attempter, board, clock, random.random)
    pipeline = Pipeline(
        steps=steps,
        claims=claims,
        dispatcher=dispatcher,
        admission=admission,
        clock=clock,
    )
    streams = Streams(
        steps=steps,
        claims=claims,
        attempter=attempter,
        admission=admission,
        clock=clock,
        random=random.random,
    )

    replays = Replays(
        steps=steps,
        dispatcher=dispatcher,
        streams=streams,
        admission=admission,
        audit=audit,
        catalog=catalog,
        clock=clock,
        code_version=code_version,
    )

    async def within_quota(call: Call) -> None:
        """Before any work, and before the limiter: a refusal here says nothing about load."""
        if keeper.catalog.quotas:
            with metrics.refusal():
                await quotas.take(keeper.catalog.quotas, call.identity)

    batches = Batches(pipeline.decide, clock, first=within_quota, spare=spare)

    job_store = JobStore(state)
    job_work = JobWork(
        store=job_store,
        items=JobItems(steps=steps, audit=audit, catalog=catalog, clock=clock),
        steps=steps,
        bulk=BulkClient(remote_channel, "remote"),
        signer=signer,
        clock=clock,
    )
    background.append(lambda: job_work.watch(settings.jobs_poll_s))
    jobs = Jobs(
        store=job_store,
        work=job_work,
        steps=steps,
        audit=audit,
        board=board,
        limiter=admission.limiter,
        spare=spare,
        catalog=catalog,
        clock=clock,
        key=shared_secret,
    )

    async def ping_channel(target: grpc.aio.Channel, name: str) -> None:
        state_now = target.get_state(try_to_connect=True)
        if state_now is not grpc.ChannelConnectivity.READY:
            raise UnavailableError("UNREACHABLE", f"{name} is {state_now.name.lower()}")

    async def ping_audit() -> None:
        """Without the log only tasks with an outbox can be decided; that is still serving."""
        if settings.outbox is None:
            await ping_channel(audit_channel, "audit")

    async def ping_paths() -> None:
        """One path that answers is enough to serve."""
        if all(board.is_down(path) for path in paths):
            raise UnavailableError("UNREACHABLE", "no path answers")

    async def watch_board() -> None:
        await board.watch(lambda: keeper.catalog)

    async def watch_overrides() -> None:
        await overrides.watch(settings.refresh_s)

    return Service(
        mounts=[
            Mount(
                "twinpath.router.v1.Router",
                RouterServicer(
                    pipeline, streams, board, catalog, overrides, replays, batches, within_quota
                ),
                router_pb2_grpc.add_RouterServicer_to_server,
            ),
            Mount(
                "twinpath.router.v1.Jobs",
                JobsServicer(jobs, within_quota),
                jobs_pb2_grpc.add_JobsServicer_to_server,
            ),
        ],
        pings={
            "audit": ping_audit,
            "features": lambda: ping_channel(features_channel, "features"),
            "paths": ping_paths,
        },
        background=[watch_board, watch_overrides, keeper.watch, *background],
    )
