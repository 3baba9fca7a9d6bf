"""What callers and models do wrong at the extremes: 64 MiB at once, and outputs of a wrong shape."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from services.chassis.channels import message_options
from services.cli.embedded.triton import Triton
from services.local.compose import build
from services.local.settings import LocalSettings
from tests import triton_models
from tests.local_path import Door, Stub, ask, failure, features, item, local, model_input, triton
from tests.support import MeshKeys, client, settings_for, start_service
from twinpath.inference import tensors

pytestmark = pytest.mark.integration

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton with a model that returns what it gets, and others that are not so kind."""
    models = (triton_models.faulty, triton_models.picky, triton_models.misshapen)
    with triton(tmp_path_factory.mktemp("triton"), *models) as running:
        yield running


@pytest.mark.parametrize(("limit", "passes"), [(16 * MIB, False), (80 * MIB, True)])
async def test_a_tensor_of_64_mib(server: Triton, keys: MeshKeys, limit: int, passes: bool) -> None:
    """Past the limit: RESOURCE_EXHAUSTED. Within it: every byte comes back. Then all is as before."""
    settings = settings_for(
        LocalSettings, keys, triton_url=server.url, refresh_s=0.1, max_message_bytes=limit
    )
    token = keys.token("service:router")
    values = np.random.default_rng(5).normal(0, 1, (4096, 4096)).astype(np.float32)
    values[0, 0] = 0  # what to do: nothing
    given = model_input(tensors.from_numpy("features", values))
    async with (
        start_service(settings, build) as service,
        client(service.address, token, options=message_options(160 * MIB)) as channel,
    ):
        stub = Stub(channel)
        if passes:
            [result] = await ask(stub, item("faulty", given), timeout=60)
            assert result.status.code == 0, result.status
            assert result.outputs[0].raw == given.tensors[0].raw
            [result] = await ask(stub, item("picky", given), timeout=60)
            assert failure(result).reason == "TENSOR_MISMATCH"
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(stub, item("faulty", given), timeout=60)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        [result] = await ask(stub, item("faulty", features([0, 7])))
        assert tensors.to_numpy(result.outputs[0]).tolist() == [[0, 7]]


@pytest.mark.parametrize("what", [1, 2, 3, 4])
async def test_an_output_of_a_wrong_shape_or_type_is_no_answer(
    server: Triton, keys: MeshKeys, door: Door, what: int
) -> None:
    """Alone and among others; a companion gets its own."""
    async with local(keys, server.url, **door(server)) as stub:
        [result] = await ask(stub, item("misshapen", features([what])))
        error = failure(result)
        assert error.code is grpc.StatusCode.INTERNAL
        assert error.reason in {"MODEL_OUTPUT_INVALID", "MODEL_FAILED"}
        bad, good = await ask(  # they share a request first, which says what the bad one says
            stub,
            item("misshapen", features([what]), name="bad"),
            item("misshapen", features([0]), name="good"),
        )
        assert failure(bad).reason == error.reason
        assert good.status.code == 0
