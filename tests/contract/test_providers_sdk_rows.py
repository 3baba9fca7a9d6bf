"""Clients of others for rows of numbers at the stand-in: Triton's over both transports, and AWS's."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from services.standin.app import StandIn
from services.standin.rows_wire import ACCESS_KEY
from services.standin.settings import Settings
from tests.support import ROOT

TOKEN = "sdk-token"
ROWS = np.array([[1.5, -2.0, 0.25]], dtype=np.float32)
BEARER = {"Authorization": f"Bearer {TOKEN}"}
TRITON_ENV = ROOT / ".venv-triton" / "bin" / "python"
OVER_HTTP = """
    import sys
    import numpy as np
    import tritonclient.http as triton

    client = triton.InferenceServerClient(sys.argv[1])
    headers = {"Authorization": "Bearer " + sys.argv[2]}
    rows = np.array([[1.5, -2.0, 0.25]], dtype=np.float32)
    assert client.is_server_live()
    assert client.is_model_ready("echo", headers=headers)
    assert client.get_model_metadata("echo", headers=headers)["inputs"][0]["name"] == "features"
    for binary in (True, False):
        given = triton.InferInput("features", [1, 3], "FP32")
        given.set_data_from_numpy(rows, binary_data=binary)
        wanted = triton.InferRequestedOutput("features", binary_data=binary)
        # Its own copy: the client writes into the headers that it is given.
        reply = client.infer("echo", [given], outputs=[wanted], headers=dict(headers))
        assert reply.as_numpy("features").tolist() == rows.tolist()
    for model, own, words in (("ghost", headers, "ghost"), ("echo", None, "token")):
        given = triton.InferInput("features", [1, 3], "FP32")
        given.set_data_from_numpy(rows)
        try:
            client.infer(model, [given], headers=own)
        except triton.InferenceServerException as error:
            assert words in str(error), error
        else:
            raise AssertionError(model)
    print("all was read")
"""


@pytest.fixture
async def standin() -> AsyncIterator[StandIn]:
    """The stand-in vendor, with its gRPC side."""
    async with StandIn(Settings(token=TOKEN, grpc_port=0)) as running:
        yield running


async def test_tritons_client_over_grpc(standin: StandIn) -> None:
    """It reads the answer, and sees errors as its own exception."""
    triton = pytest.importorskip("tritonclient.grpc.aio", reason="the local path's client")
    from tritonclient.grpc import InferInput
    from tritonclient.utils import InferenceServerException

    headers = {name.lower(): value for name, value in BEARER.items()}
    async with triton.InferenceServerClient(f"127.0.0.1:{standin.grpc_port}") as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        given = InferInput("features", [1, 3], "FP32")
        given.set_data_from_numpy(ROWS)
        reply = await client.infer("echo", [given], headers=headers)
        assert reply.as_numpy("features").tolist() == ROWS.tolist()
        assert reply.get_response().model_version == "1"
        with pytest.raises(InferenceServerException) as unknown:
            await client.infer("ghost", [given], headers=headers)
        assert unknown.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException) as stranger:
            await client.infer("echo", [given])
        assert stranger.value.status() == "StatusCode.UNAUTHENTICATED"


@pytest.mark.skipif(
    not TRITON_ENV.exists(), reason="its client over HTTP stands in Triton's own environment"
)
async def test_tritons_client_over_http(standin: StandIn) -> None:
    """Metadata, binary tensors and JSON ones, and errors as its own exception."""
    process = await asyncio.create_subprocess_exec(
        TRITON_ENV, "-c", textwrap.dedent(OVER_HTTP), f"127.0.0.1:{standin.port}", TOKEN,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert b"all was read" in out, out.decode()


async def test_awss_client_of_endpoints(standin: StandIn) -> None:
    """It signs, and the stand-in agrees; another secret is refused, as its own exception."""
    session = pytest.importorskip("botocore.session", reason="this provider's own package")
    config = pytest.importorskip("botocore.config")
    exceptions = pytest.importorskip("botocore.exceptions")

    def ask(secret: str, endpoint: str) -> tuple[dict[str, Any], bytes]:
        client = session.get_session().create_client(
            "sagemaker-runtime",
            region_name="eu-central-1",
            endpoint_url=standin.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=secret,
            config=config.Config(retries={"max_attempts": 1, "mode": "standard"}, proxies={}),
        )
        reply = client.invoke_endpoint(
            EndpointName=endpoint, ContentType="application/json", Accept="application/json",
            Body=json.dumps({"instances": ROWS.tolist()}),
        )  # fmt: skip
        return reply, reply["Body"].read()

    reply, content = await asyncio.to_thread(ask, TOKEN, "standin-score")
    assert json.loads(content) == {"predictions": [[float(ROWS.sum())]]}
    assert reply["InvokedProductionVariant"] == "blue"
    for secret, endpoint, status in (("wrong", "standin-score", 401), (TOKEN, "ghost", 404)):
        with pytest.raises(exceptions.ClientError) as caught:
            await asyncio.to_thread(ask, secret, endpoint)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
