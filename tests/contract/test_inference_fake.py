"""The inference contract, on the fake that unit tests use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.chassis.settings import ServiceSettings
from tests.contract.inference_suite import InferenceContract, Subject, wire
from tests.fakes import FakeInference, build_inference
from tests.support import MeshKeys, client, settings_for, start_service
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import inference_pb2_grpc


class TestFake(InferenceContract):
    """The fake keeps to the contract."""

    @pytest.fixture
    async def subject(self, keys: MeshKeys) -> AsyncIterator[Subject]:
        """The fake, behind the chassis."""
        fake = FakeInference()

        async def arrived() -> list:
            return [[wire(t) for t in given.tensors] for given in fake.received]

        async with (
            start_service(settings_for(ServiceSettings, keys), build_inference(fake)) as service,
            client(service.address, keys.token("service:router")) as channel,
        ):
            stub = inference_pb2_grpc.InferenceStub(channel)
            yield Subject(context_pb2.PATH_LOCAL, service.address, stub, keys, arrived)
