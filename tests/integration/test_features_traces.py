"""Spans of the feature service: Redis stands in the caller's trace, and in no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from services.cli.embedded.valkey import Valkey
from services.features import online, servicer
from services.features.online import trace_redis
from tests import support
from tests.unit.features import feast_repo
from twinpath.common.v1 import context_pb2

pytestmark = pytest.mark.integration

_exporter = InMemorySpanExporter()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Record spans of sampled callers only; a trace of one's own would be a mistake."""
    from opentelemetry.instrumentation.redis import RedisInstrumentor

    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.0)))
    provider.add_span_processor(SimpleSpanProcessor(_exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    # A tracer of a module stays with the first provider that it was used under.
    for module in (online, servicer):
        monkeypatch.setattr(module, "_tracer", provider.get_tracer(module.__name__))
    instrumentor = RedisInstrumentor()
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    _exporter.clear()
    yield _exporter
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest_asyncio.fixture
async def client(
    spans: InMemorySpanExporter, tmp_path: Path, keys: support.MeshKeys
) -> AsyncIterator[feast_repo.Client]:
    """A traced feature service over a small repo."""
    from datetime import UTC, datetime

    from feast import Entity, FeatureService, FeatureView, Field, ValueType
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import Int64

    async with Valkey("features", tmp_path / "valkey") as server:
        repo = feast_repo.Repo(tmp_path / "repo", server.address)
        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
        clicks = FeatureView(
            name="clicks",
            entities=[user],
            schema=[Field(name="count", dtype=Int64)],
            source=feast_repo.file_source("clicks"),
        )
        repo.apply(user, clicks, FeatureService(name="clicks_v1", features=[clicks]))
        row = {"count": Value(int64_val=5)}
        repo.write("clicks", {"user_id": Value(int64_val=1)}, row, datetime.now(tz=UTC))
        async with feast_repo.serving(repo.folder, server.url, keys) as served:
            await served.ready()
            trace_redis()
            spans.clear()
            yield served


def context(number: int, *, sampled: bool) -> context_pb2.TraceContext:
    """A trace of its own for a row."""
    flag = "01" if sampled else "00"
    return context_pb2.TraceContext(traceparent=f"00-{number:032x}-{7:016x}-{flag}")


async def test_redis_spans_join_each_rows_own_trace(
    client: feast_repo.Client, spans: InMemorySpanExporter
) -> None:
    """Callers at the same time: each sampled trace has its own Redis span, unsampled ones none."""

    async def ask(number: int) -> None:
        request = feast_repo.request("clicks_v1", {"user_id": [1]})
        request.rows[0].trace.CopyFrom(context(number, sampled=number % 2 == 1))
        answer = await client.stub.GetFeatures(request)
        assert answer.columns[0].values.int64s.values[0] == 5

    await asyncio.gather(*(ask(number) for number in range(1, 21)))
    redis_spans = [s for s in spans.get_finished_spans() if s.name == "HMGET"]
    assert sorted(s.context.trace_id for s in redis_spans) == list(range(1, 21, 2))
    parents = {s.context.span_id: s for s in spans.get_finished_spans()}
    for span in redis_spans:
        assert span.attributes["db.system"] == "redis"
        assert span.attributes["db.redis.pipeline_length"] == 1
        assert parents[span.parent.span_id].context.trace_id == span.context.trace_id


async def test_no_span_holds_an_entity(
    client: feast_repo.Client, spans: InMemorySpanExporter
) -> None:
    """Keys and values stay out of spans: an entity's id is personal data."""
    request = feast_repo.request("clicks_v1", {"user_id": [123456789]})
    request.rows[0].trace.CopyFrom(context(3, sampled=True))
    await client.stub.GetFeatures(request)
    assert spans.get_finished_spans()
    for span in spans.get_finished_spans():
        assert "123456789" not in str(span.to_json())


async def test_pings_and_shared_round_trips_make_no_spans(
    client: feast_repo.Client, spans: InMemorySpanExporter
) -> None:
    """Without a sampled caller nothing is recorded, pings included."""
    await client.get("clicks_v1", {"user_id": [1]})
    await asyncio.sleep(0.3)
    assert not [s for s in spans.get_finished_spans() if s.name in ("HMGET", "PING")]
