"""What the span of an attempt says, by OpenTelemetry's conventions; and what it must not say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.remote import tracing
from services.remote.providers import oip_grpc
from tests.contract.provider_cases import CASES, QUESTION, Case
from tests.contract.test_providers_contract import ask, served, streamed
from tests.contract.test_providers_oip_grpc import served as served_by_grpc
from tests.unit.remote.support import VENDOR_TOKEN

every_case = pytest.mark.parametrize("case", CASES, ids=str)
speaking = pytest.mark.parametrize("case", [c for c in CASES if c.counts], ids=str)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Tracing, with what was recorded."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def attributes(spans: InMemorySpanExporter) -> dict[str, Any]:
    """Those of the last attempt's span."""
    found = [span for span in spans.get_finished_spans() if span.name == "remote.vendor"]
    return dict(found[-1].attributes or {})


@pytest.mark.parametrize("case", [c for c in CASES if not c.grpc], ids=str)
async def test_the_span_says_what_was_asked_by_http_and_answered(
    case: Case, keys, tmp_path, spans: InMemorySpanExporter
) -> None:
    """Method, URL without its query, server, status; on failure the error's type."""
    async with served(case, keys, tmp_path) as remote:
        await ask(case, remote)
        good = attributes(spans)
        await remote.faults({"fault": {"kind": "error", "status": 503}})
        await ask(case, remote)
        bad = attributes(spans)
        await remote.faults({"fault": "reset"})
        await ask(case, remote)
        lost = attributes(spans)
        where = remote.standin.url
    assert good["http.request.method"] == "POST"
    assert good["http.response.status_code"] == 200
    assert "error.type" not in good
    assert f"http://{good['server.address']}:{good['server.port']}" == where
    if case.protocol == "template":
        assert good["url.template"] == "/score/{{version}}"
        assert "url.full" not in good
    else:
        assert good["url.full"].startswith(where)
        assert "?" not in good["url.full"]
    assert (bad["http.response.status_code"], bad["error.type"]) == (503, "503")
    assert "http.response.status_code" not in lost
    assert lost["error.type"] == "VENDOR_CONNECTION_LOST"


@every_case
async def test_the_span_says_on_whose_word_it_was_asked(
    case: Case, keys, tmp_path, spans: InMemorySpanExporter
) -> None:
    """What stands in the grant and is compared with nothing: candidate, policy set, task."""
    async with served(case, keys, tmp_path) as remote:
        await ask(case, remote)
    found = attributes(spans)
    assert found["twinpath.candidate"] == "echo_remote"
    assert found["twinpath.policy.version"] == "test"
    assert found["twinpath.task"] == "test"


@speaking
async def test_the_span_says_which_language_model_was_asked_and_what_it_counted(
    case: Case, keys, tmp_path, spans: InMemorySpanExporter
) -> None:
    """By the conventions for generative models: names, tokens, why it stopped."""
    async with served(case, keys, tmp_path) as remote:
        metering = (await ask(case, remote)).metering
        found = attributes(spans)
        await remote.faults({"fault": "content_filter"})
        await ask(case, remote)
        filtered = attributes(spans)
    assert found["gen_ai.operation.name"] == ("embeddings" if "embed" in case.name else "chat")
    assert found["gen_ai.provider.name"] == case.protocol.partition("-")[0]
    assert found["gen_ai.request.model"] in ("standin-chat", "standin-embed")
    assert found["gen_ai.response.model"] == case.version
    assert found["gen_ai.usage.input_tokens"] == metering.input_tokens
    assert found["gen_ai.usage.output_tokens"] == metering.output_tokens
    if case.says:
        assert found["gen_ai.response.finish_reasons"] == ("stop",)
        assert filtered["gen_ai.response.finish_reasons"] == ("content_filter",)


@pytest.mark.parametrize("case", [c for c in CASES if c.streams], ids=str)
async def test_a_streams_span_says_the_same(
    case: Case, keys, tmp_path, spans: InMemorySpanExporter
) -> None:
    """It ends with the stream, and has the vendor's own count."""
    async with served(case, keys, tmp_path) as remote:
        came = await streamed(case, remote)
        found = attributes(spans)
    assert found["gen_ai.usage.output_tokens"] == came.final.metering.output_tokens
    assert found["gen_ai.response.finish_reasons"] == ("stop",)


@every_case
async def test_a_span_holds_neither_our_token_nor_the_input(
    case: Case, keys, tmp_path, spans: InMemorySpanExporter
) -> None:
    """Traces are read by many."""
    async with served(case, keys, tmp_path) as remote:
        await ask(case, remote)
        await remote.faults({"fault": {"kind": "error", "status": 401, "message": QUESTION}})
        await ask(case, remote)
    written = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "remote.vendor" in written
    assert VENDOR_TOKEN not in written
    assert QUESTION not in written


async def test_the_span_says_what_was_asked_by_grpc_and_answered(
    keys, tmp_path, spans: InMemorySpanExporter
) -> None:
    """System, service, method, server and the answer's code; on failure the error's type."""
    async with served_by_grpc(keys, tmp_path) as remote:
        assert (await remote.one()).status.code == 0
        good = attributes(spans)
        code = grpc.StatusCode.UNAVAILABLE
        await remote.faults({"fault": {"kind": "error", "code": str(code.value[0])}})
        assert (await remote.one()).status.code != 0
        bad = attributes(spans)
        port = remote.standin.grpc_port
    assert (good["rpc.system"], good["rpc.method"]) == ("grpc", "ModelInfer")
    assert good["rpc.service"] == "inference.GRPCInferenceService"
    assert (good["server.address"], good["server.port"]) == ("127.0.0.1", port)
    assert good["rpc.grpc.status_code"] == grpc.StatusCode.OK.value[0]
    assert "error.type" not in good
    assert bad["rpc.grpc.status_code"] == code.value[0]
    assert bad["error.type"] == oip_grpc._FAILURES[code].reason
