"""The online store: Redis or Valkey, alone, behind Sentinel, or as a cluster."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal
from urllib.parse import urlsplit

import redis.asyncio as redis
from opentelemetry import trace
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from services.chassis import errors
from services.chassis.redis_lane import Lane
from services.features.coalescer import Read, Row

Topology = Literal["standalone", "sentinel", "cluster"]
REASON = "FEATURE_STORE_UNAVAILABLE"

_RETRY_AFTER_S = 1.0
_tracer = trace.get_tracer(__name__)
# What redis-py raises when the store is away, or refuses.
AWAY = (RedisError, RedisClusterException, OSError)


class OnlineStore:
    """Reads, writes and pings the online store.

    Args:
        url: redis://[user:password@]host:port[,host:port…][/db] (rediss:// for TLS); several
            hosts name cluster nodes or Sentinels.
        topology: What answers there.
        sentinel_master: The master's name, with Sentinel.
        timeout_s: Longest wait for a connection and for a reply, in seconds.
    """

    def __init__(
        self, url: str, topology: Topology, sentinel_master: str, timeout_s: float
    ) -> None:
        options, hosts, db = _options(url, timeout_s)
        once = Retry(NoBackoff(), 1)  # a pooled connection may have died while idle
        self._client: Any
        self._sentinel: Sentinel | None = None
        if topology == "cluster":
            nodes = [ClusterNode(host, port) for host, port in hosts]
            self._client = RedisCluster(startup_nodes=nodes, retry=once, **options)
        elif topology == "sentinel":
            self._sentinel = Sentinel(hosts, sentinel_kwargs=options, **options)  # type: ignore[no-untyped-call]
            self._client = self._sentinel.master_for(sentinel_master, db=db)
        else:
            host, port = hosts[0]
            self._client = redis.Redis(host=host, port=port, db=db, retry=once, **options)
        self._cluster = topology == "cluster"
        self._lane = None if self._cluster else Lane(self._client.connection_pool, timeout_s)
        self._timeout_s = timeout_s

    async def fetch(self, reads: Sequence[Read]) -> list[list[Row]]:
        """Read all fields of all hashes in one round trip (one for each node of a cluster).

        Raises:
            UnavailableError: when the store does not answer.
        """
        count = sum(len(read.keys) for read in reads)
        if not count:
            return [[] for _ in reads]
        try:
            with _span(count):
                flat = await self._replies(reads, count)
        except AWAY as error:
            raise unavailable(error) from error
        # A loading server refuses everything; a wrong type is that key's own trouble.
        for reply in flat:
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                raise unavailable(reply)
        replies = iter(flat)
        return [[next(replies) for _ in read.keys] for read in reads]

    async def _replies(self, reads: Sequence[Read], count: int) -> list[Row]:
        if self._lane is not None:
            commands = b"".join([read.fields.command(key) for read in reads for key in read.keys])
            return await self._lane.ask(commands, count)
        pipe = self._client.pipeline()
        for read in reads:
            for key in read.keys:
                pipe.hmget(key, read.fields.names)
        with suppress_instrumentation():
            return list(await pipe.execute(raise_on_error=False))

    async def run_script(
        self, script: str, calls: Sequence[tuple[bytes, Sequence[bytes]]]
    ) -> list[Any]:
        """Run a Lua script for each (key, arguments), in few round trips; return what it gave.

        Raises:
            UnavailableError: when the store does not answer. Some may have run.
        """
        try:
            try:
                return await self._run_script(script, calls)
            except NoScriptError:
                await self._client.script_load(script)
                return await self._run_script(script, calls)
        except AWAY as error:
            raise unavailable(error) from error

    async def _run_script(
        self, script: str, calls: Sequence[tuple[bytes, Sequence[bytes]]]
    ) -> list[Any]:
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        pipe = self._client.pipeline(transaction=False)
        if self._cluster:  # a cluster's pipeline runs no scripts
            return [await self._client.evalsha(digest, 1, key, *given) for key, given in calls]
        for key, given in calls:
            pipe.evalsha(digest, 1, key, *given)
        return list(await pipe.execute())

    @property
    def client(self) -> Any:
        """The redis-py client, for commands that are not about features."""
        return self._client

    async def ping(self) -> None:
        """Raise when the store does not answer."""
        with suppress_instrumentation():
            async with asyncio.timeout(self._timeout_s):
                await self._client.ping()

    async def close(self) -> None:
        """Close all connections."""
        if self._lane is not None:
            await self._lane.close()
        await self._client.aclose()
        if self._sentinel is not None:
            for sentinel in self._sentinel.sentinels:
                await sentinel.aclose()


def _span(count: int) -> AbstractContextManager[Any]:
    """Return the span of a round trip; none outside a sampled trace. Keys stay out of it."""
    if not trace.get_current_span().get_span_context().trace_flags.sampled:
        return nullcontext()
    return _tracer.start_as_current_span(
        "HMGET",
        kind=trace.SpanKind.CLIENT,
        attributes={
            "db.system": "redis",
            "db.statement": "HMGET",
            "db.redis.pipeline_length": count,
        },
    )


def unavailable(error: BaseException) -> errors.UnavailableError:
    """Return the error that callers see when the store does not answer."""
    return errors.UnavailableError(
        REASON,
        f"the online feature store does not answer ({type(error).__name__})",
        retry_after=_RETRY_AFTER_S,
    )


def trace_redis() -> None:
    """Give each command of redis-py a span, in this whole process; reads have their own."""
    instrumentor = RedisInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument()


def _options(url: str, timeout_s: float) -> tuple[dict[str, Any], list[tuple[str, int]], int]:
    """Split a Redis URL into client options, hosts and database.

    Raises:
        ValueError: when the URL makes no sense.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("must start with redis:// or rediss://")
    credentials, _, places = parts.netloc.rpartition("@")
    hosts = []
    for place in places.split(","):
        host, _, port = place.partition(":")
        if not host or (port and not port.isdigit()):
            raise ValueError(f"no host and port: {place!r}")
        hosts.append((host, int(port or 6379)))
    path = parts.path.strip("/")
    if path and not path.isdigit():
        raise ValueError("the path must be the number of a database")
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "ssl": parts.scheme == "rediss",
    }
    if credentials:
        user, _, password = credentials.rpartition(":")
        options |= {"username": user or None, "password": password or None}
    if parts.scheme != "rediss":
        del options["ssl"]
    return options, hosts, int(path or 0)


def check_url(url: str) -> str:
    """Return the URL if it can be used.

    Raises:
        ValueError: when it can't, and why.
    """
    _options(url, 1.0)
    return url
