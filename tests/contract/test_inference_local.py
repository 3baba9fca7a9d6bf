"""The inference contract, on the local path over a real Triton."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from services.cli.embedded.triton import Triton
from services.local.compose import build
from services.local.settings import LocalSettings
from tests import triton_models
from tests.contract.inference_suite import InferenceContract, Subject
from tests.local_path import triton
from tests.support import MeshKeys, client, settings_for, start_service
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A real Triton with the echo models."""
    folder = tmp_path_factory.mktemp("triton")
    with triton(folder, triton_models.echo, triton_models.echo_types) as running:
        yield running


class TestLocal(InferenceContract):
    """The local path keeps to the contract."""

    @pytest.fixture
    async def subject(self, server: Triton, keys: MeshKeys) -> AsyncIterator[Subject]:
        """The service in this process, Triton in its own."""

        async def arrived() -> list:
            return triton_models.captured(server.options.models)

        settings = settings_for(LocalSettings, keys, triton_url=server.url)
        async with (
            start_service(settings, build) as service,
            client(service.address, keys.token("service:router")) as channel,
        ):
            async with asyncio.timeout(30):  # on a busy machine the first ping may be late
                while not await service.health.check():  # noqa: ASYNC110 - no event of its own
                    await asyncio.sleep(0.05)
            stub = inference_pb2_grpc.InferenceStub(channel)
            yield Subject(context_pb2.PATH_LOCAL, service.address, stub, keys, arrived)
