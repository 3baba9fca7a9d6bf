"""The inference contract on the remote path before a server that is not ours: a real Triton.

It plays a vendor that speaks the Open Inference Protocol, over HTTP and over gRPC. What reached
its models is what its models themselves have seen.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.cli.embedded.triton import Triton
from services.remote.compose import build
from services.remote.settings import RemoteSettings
from tests import triton_models
from tests.contract.inference_suite import InferenceContract, Subject
from tests.local_path import triton
from tests.support import MeshKeys, client, settings_for, sign_grant, start_service
from tests.unit.remote.support import provider_yaml
from twinpath.common.v1 import context_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A real Triton with the echo models."""
    folder = tmp_path_factory.mktemp("vendor-triton")
    with triton(folder, triton_models.echo, triton_models.echo_types) as running:
        yield running


@contextlib.asynccontextmanager
async def remote(
    server: Triton, keys: MeshKeys, folder: Path, protocol: str, url: str
) -> AsyncIterator[Subject]:
    """The remote service in this process, with Triton for a vendor."""
    token = folder / "vendor.token"
    token.write_text("triton-asks-for-none")
    text = provider_yaml(url, token, extra="").replace(
        "protocol: oip-http", f"protocol: {protocol}"
    )
    (folder / "catalog" / "providers").mkdir(parents=True)
    (folder / "catalog" / "providers" / "standin.yaml").write_text(text)

    async def arrived() -> list:
        return triton_models.captured(server.options.models)

    def dress(item: inference_pb2.InferItem) -> None:
        item.provider = "standin"
        given = item.input
        claims = {
            "grant_id": secrets.token_hex(16),
            "decision_id": item.decision_id,
            "candidate": "echo_remote",
            "provider": "standin",
            "input_digest": given.digest or digest.digest(tensors.normalize(given.tensors)),
            "data_class": context_pb2.DATA_CLASS_INTERNAL,
            "policy_version": "test",
            "task": "test",
            "model": item.model,
            "version": item.version,
        }
        item.grant.CopyFrom(sign_grant(keys.grants, claims))

    settings = settings_for(
        RemoteSettings, keys, catalog=folder / "catalog", grant_keys=keys.grant_keys
    )
    async with (
        start_service(settings, build) as service,
        client(service.address, keys.token("service:router")) as channel,
    ):
        stub = inference_pb2_grpc.InferenceStub(channel)
        yield Subject(context_pb2.PATH_REMOTE, service.address, stub, keys, arrived, dress)


class TestOverHttp(InferenceContract):
    """Triton's own reading of the protocol over HTTP, with its binary extension."""

    @pytest.fixture
    async def subject(
        self, server: Triton, keys: MeshKeys, tmp_path: Path
    ) -> AsyncIterator[Subject]:
        """See `remote`."""
        async with remote(server, keys, tmp_path, "oip-http", server.http_url) as found:
            yield found


class TestOverGrpc(InferenceContract):
    """Triton's own reading of the protocol over gRPC."""

    @pytest.fixture
    async def subject(
        self, server: Triton, keys: MeshKeys, tmp_path: Path
    ) -> AsyncIterator[Subject]:
        """See `remote`."""
        async with remote(server, keys, tmp_path, "oip-grpc", f"http://{server.url}") as found:
            yield found
