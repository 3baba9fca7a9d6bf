"""The online store: Redis or Valkey, alone, behind Sentinel, or as a cluster."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import redis.asyncio as redis
from opentelemetry import trace
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from services.chassis import errors
from services.features.coalescer import Read, Row

Topology = Literal["standalone", "sentinel", "cluster"]
REASON = "FEATURE_STORE_UNAVAILABLE"

_RETRY_AFTER_S = 1.0
# What redis-py raises when the store is away, or refuses.
AWAY = (RedisError, RedisClusterException, OSError)


class _PackedPipeline(Pipeline):
    """A pipeline of commands that are packed already, whose replies are read in one go.

    redis-py packs each argument and awaits each reply by itself: most of the cost of a read of
    many fields. The way around, connection pool, retry and instrumentation are redis-py's own.
    """

    packed: bytes
    count: int

    async def _execute_pipeline(
        self, connection: Any, commands: Any, raise_on_error: bool
    ) -> list[Any]:
        del commands, raise_on_error
        try:
            async with asyncio.timeout(connection.socket_timeout):
                await connection.send_packed_command(self.packed)
                read = connection._parser.read_response  # noqa: SLF001
                return [await _reply(read) for _ in range(self.count)]
        except TimeoutError as error:
            await connection.disconnect(nowait=True)
            raise redis.TimeoutError("Redis did not answer in time") from error
        except OSError as error:
            await connection.disconnect(nowait=True)
            raise redis.ConnectionError(str(error)) from error
        except BaseException:
            # Replies may still be on their way; nobody may read them as their own.
            await connection.disconnect(nowait=True)
            raise


async def _reply(read: Any) -> Any:
    reply = await read(disable_decoding=True)
    # A loading or read-only server refuses everything; a wrong type is that key's own trouble.
    if isinstance(reply, ResponseError):
        return reply
    if isinstance(reply, Exception):
        raise reply
    return reply


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
        self._timeout_s = timeout_s

    async def fetch(self, reads: Sequence[Read]) -> list[list[Row]]:
        """Read all fields of all hashes in one round trip (one for each node of a cluster).

        Raises:
            UnavailableError: when the store does not answer.
        """
        try:
            flat = await (self._fetch_cluster(reads) if self._cluster else self._fetch_one(reads))
        except AWAY as error:
            raise unavailable(error) from error
        replies = iter(flat)
        return [[next(replies) for _ in read.keys] for read in reads]

    async def fetch_quietly(self, reads: Sequence[Read]) -> list[list[Row]]:
        """Read without spans: for round trips that belong to no trace."""
        with suppress_instrumentation():
            return await self.fetch(reads)

    async def _fetch_one(self, reads: Sequence[Read]) -> list[Row]:
        pool = self._client.connection_pool
        async with _PackedPipeline(
            pool, self._client.response_callbacks, transaction=False, shard_hint=None
        ) as pipe:
            pipe.packed = b"".join(_commands(reads))
            pipe.count = sum(len(read.keys) for read in reads)
            if not pipe.count:
                return []
            # What the span is named after. Its length is set by the hook in `trace_redis`.
            pipe.command_stack = [(("HMGET",), {})]
            return await pipe.execute()

    async def _fetch_cluster(self, reads: Sequence[Read]) -> list[Row]:
        pipe = self._client.pipeline()
        count = 0
        for read in reads:
            for key in read.keys:
                pipe.hmget(key, read.fields.names)
                count += 1
        if not count:
            return []
        rows = await pipe.execute(raise_on_error=False)
        for row in rows:
            if isinstance(row, Exception) and not isinstance(row, ResponseError):
                raise row
        return list(rows)

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
        await self._client.aclose()
        if self._sentinel is not None:
            for sentinel in self._sentinel.sentinels:
                await sentinel.aclose()


def _commands(reads: Sequence[Read]) -> Iterator[bytes]:
    for read in reads:
        yield from map(read.fields.command, read.keys)


def unavailable(error: BaseException) -> errors.UnavailableError:
    """Return the error that callers see when the store does not answer."""
    return errors.UnavailableError(
        REASON,
        f"the online feature store does not answer ({type(error).__name__})",
        retry_after=_RETRY_AFTER_S,
    )


def trace_redis() -> None:
    """Give each command and pipeline of redis-py a span, in this whole process."""
    instrumentor = RedisInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(response_hook=_pipeline_length)


def _pipeline_length(span: trace.Span, instance: Any, response: Any) -> None:
    if isinstance(instance, _PackedPipeline) and isinstance(response, list):
        span.set_attribute("db.redis.pipeline_length", len(response))


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
