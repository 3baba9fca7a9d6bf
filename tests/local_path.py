"""What tests of the local path need: a real Triton, the service over it, and its client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.chassis.errors import ServiceError, from_status
from services.cli.embedded.process import ManagedProcess
from services.cli.embedded.triton import Triton, TritonOptions
from services.local.compose import build
from services.local.settings import LocalSettings
from tests import triton_models
from tests.support import MeshKeys, client, settings_for, start_service
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2

Stub = inference_pb2_grpc.InferenceStub

# The settings' fields by the server that they are for.
Door = Callable[[Triton], dict[str, str]]


def _now(work: Any) -> Any:
    """Run a coroutine to its end, beside whatever loops pytest keeps."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@contextlib.contextmanager
def running(process: ManagedProcess) -> Iterator[None]:
    """Keep a process running, in fixtures that outlive event loops."""
    _now(process.start())
    try:
        yield
    finally:
        _now(process.stop())


def new_triton(folder: Path, *models: Callable[[Path], None], **options: Any) -> Triton:
    """Return a Triton with these test models, all of them if none is named; not started yet."""
    repository = triton_models.repository(folder / "models", *models)
    return Triton(
        TritonOptions(
            repository,
            folder / "run",
            triton_models.TRITON_ENV,
            backends=triton_models.BACKENDS,
            # A stream that was cancelled must not hold the end of a test up.
            extra=(
                *("--exit-timeout-secs", "1"),
                *("--grpc-header-forward-pattern", "traceparent"),
                *("--http-header-forward-pattern", "traceparent"),
            ),
            **options,
        )
    )


@contextlib.contextmanager
def triton(folder: Path, *models: Callable[[Path], None], **options: Any) -> Iterator[Triton]:
    """Run a real Triton with these test models; for fixtures that outlive event loops."""
    server = new_triton(folder, *models, **options)
    with running(server):
        yield server


@contextlib.asynccontextmanager
async def local(keys: MeshKeys, url: str, **fields: Any) -> AsyncIterator[Stub]:
    """Run the local path in this process, and give the router's client of it."""
    settings = settings_for(LocalSettings, keys, triton_url=url, **{"refresh_s": 0.1, **fields})
    token = keys.token("service:router")
    async with (
        start_service(settings, build) as service,
        client(service.address, token) as channel,
    ):
        yield Stub(channel)


def model_input(*given: tensor_pb2.Tensor) -> tensor_pb2.ModelInput:
    """Return a model input as the router makes it: normalized and digested."""
    normal = tensors.normalize(given)
    return tensor_pb2.ModelInput(tensors=normal, digest=digest.digest(normal))


def features(*rows: Sequence[float]) -> tensor_pb2.ModelInput:
    """Return a model input of the one FP32 tensor `features`."""
    return model_input(tensors.from_numpy("features", np.array(rows, dtype=np.float32)))


def item(
    model: str,
    given: tensor_pb2.ModelInput,
    *,
    name: str = "item-1",
    time_left_s: float = 0.0,
    version: str = "",
    **context: Any,
) -> inference_pb2.InferItem:
    """Return an item for a model."""
    return inference_pb2.InferItem(
        context={"id": name, "time_left_us": int(time_left_s * 1e6), **context},
        model=model,
        version=version,
        input=given,
    )


async def ask(
    stub: Stub, *items: inference_pb2.InferItem, timeout: float = 20.0
) -> list[inference_pb2.InferResult]:
    """Ask, and return the results."""
    request = inference_pb2.InferRequest(items=items)
    response = await stub.Infer(request, timeout=timeout)
    return list(response.results)


def failure(result: inference_pb2.InferResult) -> ServiceError:
    """Return the error of a result that must have failed."""
    error = from_status(result.status)
    assert error is not None, result
    assert not result.outputs
    return error
