"""A mesh that sends its spans to the real Jaeger, and what Jaeger's query API gives back.

One mesh of its own: where it sends its spans is settled when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from services.cli.embedded import jaeger
from services.cli.launcher.layout import laptop
from services.cli.launcher.mesh import Mesh, MeshOptions
from services.cli.tracing.jaeger import JaegerTraces
from services.cli.tracing.spans import Span
from tests.support import ROOT
from twinpath import telemetry as names
from twinpath.client import AsyncClient, Decision, errors

BINARY = jaeger.binary()
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(BINARY is None, reason="Jaeger is not built here; `make jaeger` builds it"),
    pytest.mark.timeout(600),
]

# OpenTelemetry's conventions (RPC, HTTP, database, GenAI, and what belongs to them), and what
# Triton and the SDK write about themselves. Our own names are those of the registry.
CONVENTIONS = (
    "rpc.", "net.", "network.", "server.", "client.", "http.", "url.", "user_agent.", "db.",
    "gen_ai.", "error.", "exception.", "otel.", "internal.", "peer.", "thread.", "triton.",
)  # fmt: skip
REGISTRY = {
    value
    for name, value in vars(names).items()
    if name.isupper() and not name.startswith("SPAN_") and isinstance(value, str)
}
BOTH = {"caller", "twinpath-router", "twinpath-features", "twinpath-audit"}
LOCAL = BOTH | {"twinpath-local", "triton"}
REMOTE = BOTH | {"twinpath-remote", "standin-vendor"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with a Jaeger of its own on free ports, which takes all of its spans."""
    folder = tmp_path_factory.mktemp("jaeger")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    repo = folder / "feature_repo"
    shutil.copytree(
        ROOT / "feature_repo", repo, ignore=shutil.ignore_patterns("data", "__pycache__")
    )
    (repo / "data").mkdir()
    home = Path(os.environ.get("TWINPATH_TEST_HOME", folder))
    layout = replace(laptop(home, os.environ, runtime=folder), feature_repo=repo)
    made = Mesh(
        MeshOptions(
            layout,
            standin_latency_ms=0,
            standin_jitter_ms=0,
            jaeger=BINARY,
            environment={**kept, "TWINPATH_DRAIN_S": "1"},
        )
    )
    asyncio.run(made.start())
    try:
        yield made
    finally:
        asyncio.run(made.stop())


class Caller:
    """A program of another team: it traces, and uses the client."""

    def __init__(self, mesh: Mesh) -> None:
        assert mesh.jaeger is not None
        self.mesh = mesh
        self.traces = JaegerTraces(mesh.jaeger.url)
        resource = Resource.create({"service.name": "caller"})
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=mesh.jaeger.endpoint, insecure=True)
        self.provider.add_span_processor(SimpleSpanProcessor(exporter))
        self.client = AsyncClient(
            mesh.wiring.services["router"], token=mesh.keys.tokens["caller"], timeout_s=30
        )

    async def infer(self, task: str, **ask: object) -> Decision:
        """Make a decision within a span of the caller's."""
        with self.provider.get_tracer("caller").start_as_current_span("ask"):
            return await self.client.infer(task, entity={"patient_id": 17}, **ask)

    async def spans(self, trace_id: str, services: set[str], within_s: float = 30) -> list[Span]:
        """The trace from Jaeger, once all of these services' spans are in, or the time is up."""
        end = asyncio.get_running_loop().time() + within_s
        while True:
            found = await asyncio.to_thread(self.traces.spans, trace_id)
            known = {span.span_id for span in found}
            whole = all(not span.parent_id or span.parent_id in known for span in found)
            there = services <= {span.service for span in found}
            if (there and whole) or asyncio.get_running_loop().time() > end:
                return found
            await asyncio.sleep(0.3)


@pytest.fixture
async def caller(mesh: Mesh) -> AsyncIterator[Caller]:
    """The other team's program.

    It asks once before: Triton's exporter may keep the very first span of its life until the next
    one comes.
    """
    made = Caller(mesh)
    await made.client.infer("diabetes_progression", entity={"patient_id": 1}, only_path="local")
    yield made
    await made.client.close()
    made.provider.shutdown()


def check_shape(spans: list[Span], services: set[str]) -> None:
    """One trace: all services, one root, every parent there, every attribute registered."""
    assert services == {span.service for span in spans}
    known = {span.span_id for span in spans}
    roots = [span for span in spans if not span.parent_id]
    assert [(root.service, root.name) for root in roots] == [("caller", "ask")]
    orphans = [(s.service, s.name) for s in spans if s.parent_id and s.parent_id not in known]
    assert orphans == []
    strangers = {
        name
        for span in spans
        if span.service.startswith("twinpath-")
        for name in span.attributes
        if name not in REGISTRY and not name.startswith(CONVENTIONS)
    }
    assert strangers == set()


def of(spans: list[Span], service: str, **attributes: object) -> list[Span]:
    """The spans of a service that have these attributes; a dot is written __."""
    wanted = {name.replace("__", "."): value for name, value in attributes.items()}
    return [
        span
        for span in spans
        if span.service == service
        and all(span.attributes.get(name) == value for name, value in wanted.items())
    ]


async def test_a_local_decision_is_one_trace_down_to_triton_s_own_spans(caller: Caller) -> None:
    """Caller, router, features, Redis, local, Triton, audit: one root, nobody missing."""
    decision = await caller.infer("diabetes_progression", only_path="local")
    spans = await caller.spans(decision.trace_id, LOCAL)
    check_shape(spans, LOCAL)
    assert of(spans, "twinpath-features", db__system="redis")
    (server,) = [s for s in of(spans, "twinpath-router") if s.kind == "SERVER"]
    assert server.attributes[names.DECISION_ID] == decision.decision_id
    assert server.attributes[names.PATH] == "local"
    assert server.attributes["rpc.system"] == "grpc"
    by_id = {span.span_id: span for span in spans}
    triton = of(spans, "triton")
    assert all(by_id[span.parent_id].service in {"twinpath-local", "triton"} for span in triton)


async def test_a_remote_decision_is_one_trace_into_the_vendor(caller: Caller) -> None:
    """The vendor's server span hangs below our HTTP client span, which is below the attempt."""
    decision = await caller.infer("diabetes_progression", only_path="remote")
    spans = await caller.spans(decision.trace_id, REMOTE)
    check_shape(spans, REMOTE)
    by_id = {span.span_id: span for span in spans}
    vendor = of(spans, "standin-vendor")[0]
    call = by_id[vendor.parent_id]
    assert (call.service, call.kind) == ("twinpath-remote", "CLIENT")
    attempt = of(spans, "twinpath-router", **{names.PATH.replace(".", "__"): "remote"})
    assert attempt
    assert of(spans, "twinpath-features", db__system="redis")


async def test_restricted_data_leaves_no_digest_in_jaeger(caller: Caller) -> None:
    """A digest of guessable data confirms a guess, so a restricted task's trace has none."""
    decision = await caller.infer("tumour_triage")
    spans = await caller.spans(decision.trace_id, LOCAL)
    check_shape(spans, LOCAL)
    digest = decision.message.input_digest.hex()
    assert not [s for s in spans if digest in (str(v) for v in s.attributes.values())]


async def test_a_refusal_arrives_although_the_ratio_let_it_go(caller: Caller) -> None:
    """Of two unsampled requests, the one that policy refused is in Jaeger, and the other is not."""
    refused, fine = "a" * 31 + "1", "a" * 31 + "2"
    entity = {"patient_id": 17}
    for trace_id, task in ((refused, "tumour_triage"), (fine, "diabetes_progression")):
        parent = f"00-{trace_id}-{'b' * 16}-00"
        with contextlib.suppress(errors.FailedPreconditionError):
            await caller.client.infer(task, entity=entity, only_path="remote", traceparent=parent)
    end = asyncio.get_running_loop().time() + 30
    while not (spans := await asyncio.to_thread(caller.traces.spans, refused)):
        assert asyncio.get_running_loop().time() < end, "the refusal's span did not arrive"
        await asyncio.sleep(0.3)
    (server,) = [span for span in spans if span.kind == "SERVER"]
    assert server.service == "twinpath-router"
    assert "restricted_never_leaves" in str(server.attributes[names.REFUSED_RULE])
    assert await asyncio.to_thread(caller.traces.spans, fine) == []


async def test_metrics_lead_to_the_trace(caller: Caller, mesh: Mesh) -> None:
    """The router's OpenMetrics page has exemplars, and their trace ids are found in Jaeger."""
    await caller.infer("diabetes_progression", only_path="local")
    url = f"http://{mesh.wiring.metrics['router']}/metrics"
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}

    def page() -> str:
        with urlopen(Request(url, headers=accept), timeout=10) as reply:
            return str(reply.read().decode())

    text = await asyncio.to_thread(page)
    found = re.search(r'twinpath_decisions_total\{.*\} .*# \{trace_id="([0-9a-f]{32})"\}', text)
    assert found, text
    assert "twinpath-router" in {s.service for s in await caller.spans(found[1], BOTH)}


async def test_the_newest_decision_is_found_without_its_id(caller: Caller) -> None:
    """`twinpath trace` without an id asks for the newest trace that has a decision."""
    decision = await caller.infer("diabetes_progression", only_path="local")
    await caller.spans(decision.trace_id, LOCAL)
    assert caller.traces.newest(1, names.DECISION_ID) == [decision.trace_id]
    assert caller.traces.spans("f" * 32) == []
    assert caller.traces.spans("no id") == []
