"""The remote path before a LiteLLM proxy, a gateway that is not ours; opt-in.

LiteLLM wants an environment of its own. Make one, name its program, and run:

    python -m venv /tmp/litellm && /tmp/litellm/bin/pip install 'litellm[proxy]'
    TWINPATH_TEST_LITELLM=/tmp/litellm/bin/litellm pytest tests/contract/test_providers_litellm.py

Behind the proxy stands the stand-in vendor, so what is asked goes through someone else's reading
of the protocol twice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from services.chassis.errors import from_status
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.standin.app import StandIn
from services.standin.faults import Rule
from services.standin.settings import Settings
from tests.contract.provider_cases import CASES, Case, text_of
from tests.support import free_port
from tests.unit.remote.support import VENDOR_TOKEN, Remote, make_item, start_remote
from twinpath.inference.v1 import inference_pb2

PROGRAM = os.environ.get("TWINPATH_TEST_LITELLM", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not PROGRAM, reason="TWINPATH_TEST_LITELLM names no LiteLLM; see above"),
]
KEY = "sk-proxy-key-of-the-test"
CONFIG = """
model_list:
  - model_name: standin-chat
    litellm_params: {{model: openai/standin-chat, api_base: {url}/v1, api_key: {token}}}
  - model_name: standin-embed
    litellm_params: {{model: openai/standin-embed, api_base: {url}/v1, api_key: {token}}}
general_settings: {{master_key: {key}}}
litellm_settings: {{num_retries: 0, telemetry: false}}
"""
BY_NAME = {case.name: case for case in CASES}


@contextlib.asynccontextmanager
async def proxied(case: Case, keys, folder: Path) -> AsyncIterator[tuple[Remote, StandIn]]:
    """The service, LiteLLM for its vendor, and the stand-in behind that."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    async def ready() -> bool:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{url}/health/liveliness") as reply,
        ):
            return reply.status == 200

    async with StandIn(Settings(token=VENDOR_TOKEN)) as behind:
        config = folder / "litellm.yaml"
        config.write_text(CONFIG.format(url=behind.url, token=VENDOR_TOKEN, key=KEY))
        argv = (PROGRAM, "--config", str(config), "--host", "127.0.0.1", "--port", str(port))
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }  # fmt: skip
        spec = ProcessSpec(
            "litellm", argv, folder / "litellm.log", env=environment, cwd=folder, ready=ready,
            ready_timeout_s=180.0,
        )  # fmt: skip
        process = ManagedProcess(spec)
        await process.start()
        try:
            async with start_remote(keys, folder, url, provider=with_key(case)) as remote:
                yield remote, behind
        finally:
            await process.stop()


def with_key(case: Case) -> Callable[[str, Path], str]:
    """The case's provider file, and the proxy's key for a token."""

    def write(base_url: str, token_file: Path) -> str:
        text = case.provider()(base_url, token_file)
        token_file.write_text(KEY)
        return text

    return write


def item_of(case: Case, keys) -> inference_pb2.InferItem:
    """The case's item."""
    return make_item(keys, case.given, model=case.model, version=case.version)


async def answered(case: Case, remote: Remote) -> inference_pb2.InferResult:
    """The result of the case's item."""
    (result,) = await remote.infer(item_of(case, remote.keys), timeout=30)
    return result


@pytest.mark.parametrize("name", ["openai-chat text", "openai-chat table", "openai-embeddings"])
async def test_it_answers_through_the_proxy(name: str, keys, tmp_path) -> None:
    """Right outputs, and the usage that the vendor behind it counted."""
    case = BY_NAME[name]
    async with proxied(case, keys, tmp_path) as (remote, _):
        result = await answered(case, remote)
    assert result.status.code == 0, result.status
    case.expected(result.outputs)
    assert result.metering.input_tokens > 0
    assert result.metering.cost.nanos > 0


async def test_a_stream_through_the_proxy_ends_once(keys, tmp_path) -> None:
    """Chunks, and one final message."""
    case = BY_NAME["openai-chat text"]
    async with proxied(case, keys, tmp_path) as (remote, _):
        whole = await answered(case, remote)
        request = inference_pb2.InferStreamRequest(item=item_of(case, keys))
        messages = [m async for m in remote.stub.InferStream(request, timeout=30)]
    said = [text_of(m.chunk.outputs) for m in messages[:-1]]
    assert "".join(said) == text_of(whole.outputs)
    assert messages[-1].final.finish_reason == inference_pb2.FINISH_REASON_STOP


async def test_its_errors_are_in_the_table(keys, tmp_path) -> None:
    """A failing vendor behind the proxy, and one that limits our rate."""
    case = BY_NAME["openai-chat text"]
    async with proxied(case, keys, tmp_path) as (remote, behind):
        await answered(case, remote)
        for fault, reasons in (
            ("error;status=503", {"VENDOR_UNAVAILABLE", "VENDOR_ERROR", "VENDOR_RATE_LIMITED"}),
            ("error;status=400", {"VENDOR_REJECTED_INPUT"}),
            ("content_filter", {""}),
        ):
            behind.public.schedule.replace([Rule(fault=fault)])
            (result,) = await remote.infer(item_of(case, keys), timeout=30)
            error = from_status(result.status)
            assert (error.reason if error else "") in reasons, (fault, result.status)
        assert result.finish_reason == inference_pb2.FINISH_REASON_CONTENT_FILTER
