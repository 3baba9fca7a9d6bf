"""Small Feast repos for tests, applied for real, and a feature service over them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio

from services.cli.embedded.valkey import Valkey
from services.features import store as feast_first  # noqa: F401 - its import of feast is the quiet one
from services.features.compose import build
from services.features.settings import FeaturesSettings
from tests import support
from twinpath.common.v1 import context_pb2, value_pb2
from twinpath.features.v1 import features_pb2, features_pb2_grpc

YAML = """\
project: {project}
provider: local
registry:
  registry_type: file
  path: registry.db
  cache_ttl_seconds: 0
offline_store:
  type: file
online_store:
  type: redis
  redis_type: {topology}
  connection_string: {address}
entity_key_serialization_version: 3
"""


class Repo:
    """A Feast repo in a folder, with an online store at `address` ("host:port")."""

    def __init__(
        self, folder: Path, address: str, project: str = "test", topology: str = "redis"
    ) -> None:
        from feast import FeatureStore

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "feature_store.yaml").write_text(
            YAML.format(project=project, address=address, topology=topology)
        )
        self.folder = folder
        self.feast = FeatureStore(repo_path=str(folder))

    def apply(self, *objects: Any) -> None:
        """`feast apply`."""
        self.feast.apply(list(objects))

    def write(
        self,
        view: str,
        keys: Mapping[str, Any],
        values: Mapping[str, Any],
        when: datetime,
    ) -> None:
        """Write one row to the online store with Feast's own code.

        Keys and values are Feast `Value` messages.
        """
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey

        table = self.feast.get_feature_view(view)
        entity = EntityKey(join_keys=list(keys), entity_values=list(keys.values()))
        self.feast._provider.online_write_batch(
            self.feast.config, table, [(entity, dict(values), when, None)], None
        )


def file_source(name: str = "source") -> Any:
    """A source that nobody reads."""
    from feast import FileSource

    return FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp")


@contextlib.asynccontextmanager
async def serving(
    repo: Path, url: str, keys: support.MeshKeys, **settings: Any
) -> AsyncIterator[Client]:
    """Run the feature service over a repo, and give a client as the router is one."""
    given = support.settings_for(
        FeaturesSettings,
        keys,
        **{"url": url, "repo": repo, "refresh_interval_s": 0.2, **settings},
    )
    async with support.start_service(given, build) as running:
        token = keys.token("service:router", roles=["feature_writer"])
        async with support.client(running.address, token) as channel:
            yield Client(features_pb2_grpc.FeaturesStub(channel), running, channel)


class Client:
    """Calls a feature service."""

    def __init__(self, stub: Any, running: Any, channel: grpc.aio.Channel) -> None:
        self.stub = stub
        self.running = running
        self.channel = channel

    async def ready(self, service: str = "") -> None:
        """Wait until the registry is in force and, if named, has this feature service."""
        import asyncio

        while True:
            try:
                await self.stub.Describe(features_pb2.DescribeRequest(feature_service=service))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
            else:
                return

    async def get(
        self,
        service: str,
        keys: Mapping[str, value_pb2.Column | Sequence[Any]],
        requests: Mapping[str, value_pb2.Column | Sequence[Any]] | None = None,
        **options: Any,
    ) -> features_pb2.GetFeaturesResponse:
        """Get features; columns of Python values become columns of the contract."""
        return await self.stub.GetFeatures(request(service, keys, requests), **options)


def request(
    service: str,
    keys: Mapping[str, Any],
    requests: Mapping[str, Any] | None = None,
    rows: int | None = None,
) -> features_pb2.GetFeaturesRequest:
    """Build a request."""
    joined = [column(name, values) for name, values in keys.items()]
    if rows is None:
        array = joined[0].WhichOneof("values")
        rows = len(getattr(joined[0], array).values)
    return features_pb2.GetFeaturesRequest(
        feature_service=service,
        rows=[context_pb2.ItemContext(id=f"row-{n}") for n in range(rows)],
        join_keys=joined,
        request_fields=[column(name, values) for name, values in (requests or {}).items()],
    )


def push(source: str, columns: Mapping[str, Any]) -> features_pb2.PushRequest:
    """Build a push."""
    return features_pb2.PushRequest(
        push_source=source, columns=[column(name, values) for name, values in columns.items()]
    )


def column(name: str, values: Any) -> value_pb2.Column:
    """Return a column; its array follows from the first value."""
    if isinstance(values, value_pb2.Column):
        values.name = name
        return values
    made = value_pb2.Column(name=name)
    first = values[0] if values else 0
    if isinstance(first, bool):
        made.bools.values.extend(values)
    elif isinstance(first, int):
        made.int64s.values.extend(values)
    elif isinstance(first, float):
        made.doubles.values.extend(values)
    elif isinstance(first, str):
        made.strings.values.extend(values)
    elif isinstance(first, bytes):
        made.byteses.values.extend(values)
    elif isinstance(first, datetime):
        made.unix_times_us.values.extend(micros(v) for v in values)
    else:
        raise TypeError(type(first))
    return made


def micros(when: datetime) -> int:
    """Return microseconds since 1970 UTC."""
    delta = when.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


@contextlib.asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[Valkey]:
    """Run a Valkey of the test's own."""
    async with Valkey("features", folder) as server:
        yield server
