"""Models of several kinds on a real Triton, and models that must not serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.cli.embedded.triton import Triton
from services.local.manifest import write_card
from tests import triton_models
from tests.local_path import Door, Stub, ask, failure, features, item, local, model_input, triton
from tests.support import MeshKeys, public_pem
from twinpath.common.v1 import context_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

pytestmark = pytest.mark.integration

MODELS = (
    triton_models.echo,
    triton_models.semantic_ensemble,
    triton_models.ensemble,
    triton_models.queued,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton with these models."""
    with triton(tmp_path_factory.mktemp("triton"), *MODELS) as running:
        yield running


@pytest.fixture
async def stub(server: Triton, keys: MeshKeys, door: Door) -> AsyncIterator[Stub]:
    """The local path over it."""
    async with local(keys, server.url, machine_usd_per_hour=3.6, **door(server)) as found:
        yield found


def text(*rows: str | bytes) -> tensor_pb2.ModelInput:
    """Texts, one a row."""
    given = [[row.encode() if isinstance(row, str) else row] for row in rows]
    return model_input(tensors.from_numpy("text", np.array(given, dtype=object)))


async def test_an_embedding_model_gives_vectors(stub: Stub) -> None:
    """Trained, ONNX: near for texts of one matter, also when many texts share a request."""
    said = [
        "blood pressure and age of diabetes patients",
        "patients with diabetes: their age",
        "images of handwritten digits",
    ]
    together = await ask(
        stub, *(item("text_embedding", text(s), name=f"{n}") for n, s in enumerate(said))
    )
    vectors = [tensors.to_numpy(result.outputs[0])[0] for result in together]
    assert vectors[0].shape == (32,)
    assert np.allclose([np.linalg.norm(vector) for vector in vectors], 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    [batch] = await ask(stub, item("text_embedding", text(*said)))
    assert np.allclose(tensors.to_numpy(batch.outputs[0]), np.stack(vectors), atol=1e-6)


async def test_text_that_is_no_utf8_is_refused_by_the_model(stub: Stub) -> None:
    """And its companions are answered."""
    good, bad = await ask(
        stub,
        item("text_embedding", text("fine"), name="good"),
        item("text_embedding", text(b"\xff\xfe"), name="bad"),
    )
    assert good.status.code == 0
    assert failure(bad).reason == "MODEL_REFUSED_INPUT"


async def test_an_ensemble_over_a_trained_model(stub: Stub) -> None:
    """Text tidied, embedded by the ONNX model, its vector reduced: one request."""
    plain, untidy = await ask(
        stub,
        item("text_signs", text("images of digits"), name="plain"),
        item("text_signs", text("  IMAGES of\n digits "), name="untidy"),
    )
    found = tensors.to_numpy(plain.outputs[0])
    assert found.dtype == np.int8
    assert found.shape == (1, 32)
    assert np.array_equal(found, tensors.to_numpy(untidy.outputs[0]))


async def test_an_ensemble_is_a_model_like_any_other(stub: Stub) -> None:
    """Preprocessing, model and postprocessing; its own description, its own metering."""
    [result] = await ask(stub, item("halved_sum", features([1, 2, 4], [2, 2, 3])))
    assert tensors.to_numpy(result.outputs[0]).tolist() == [[3], [3]]
    assert result.metering.compute_us > 0
    assert result.metering.cost.nanos > 0
    described = await stub.Describe(inference_pb2.DescribeRequest(model="halved_sum"))
    assert [(t.name, list(t.shape)) for t in described.models[0].inputs] == [("features", [-1, 3])]


async def test_tritons_own_queue_has_its_own_reasons(stub: Stub) -> None:
    """A full queue, and a request whose time is up in it, are told apart from an outage."""
    slow = [item("queued", features([300]), name=f"{n}") for n in range(8)]
    results = await ask(stub, *slow)
    full = {failure(r).reason for r in results if r.status.code}
    assert full == {"TRITON_QUEUE_FULL"}
    assert sum(r.status.code == 0 for r in results) >= 2


async def test_priority_reaches_tritons_queue(server: Triton, keys: MeshKeys, door: Door) -> None:
    """An interactive request overtakes batch ones that wait already."""
    async with local(keys, server.url, **door(server)) as stub:
        done: list[str] = []

        async def one(name: str, priority: context_pb2.Priority, value: float) -> None:
            [result] = await ask(
                stub, item("queued", features([value]), name=name, priority=priority)
            )
            assert result.status.code == 0, result.status
            done.append(name)

        tasks = []
        for name, priority, value in (
            ("first", context_pb2.PRIORITY_BATCH, 600),
            ("batch", context_pb2.PRIORITY_BATCH, 100),
            ("interactive", context_pb2.PRIORITY_INTERACTIVE, 0),
        ):
            tasks.append(asyncio.create_task(one(name, priority, value)))
            await asyncio.sleep(0.15)
        await asyncio.gather(*tasks)
    assert done == ["first", "interactive", "batch"]


async def test_only_what_somebody_vouches_for_serves(
    server: Triton, keys: MeshKeys, tmp_path: Path
) -> None:
    """A signed model answers; an unsigned and a changed one are refused, each with its reason."""
    key = Ed25519PrivateKey.generate()
    trusted = tmp_path / "approvers.pem"
    trusted.write_text(public_pem(key))
    models = triton_models.repository(tmp_path / "models", *MODELS)
    for name in ("echo", "queued"):
        write_card(models / name / "1", {"name": name, "version": "1"}, key)
    with (models / "queued" / "1" / "model.py").open("a") as file:
        file.write("# changed after it was signed\n")
    async with local(keys, server.url, models=models, artifact_keys=trusted) as stub:
        signed, changed, unsigned = await ask(
            stub,
            item("echo", features([1]), name="signed"),
            item("queued", features([1]), name="changed"),
            item("halved_sum", features([1, 2, 3]), name="unsigned"),
        )
        assert signed.status.code == 0
        assert len(signed.metering.artifact_digest) == 32
        for result, why in ((changed, "not the one"), (unsigned, "no card.json")):
            error = failure(result)
            assert error.code is grpc.StatusCode.FAILED_PRECONDITION
            assert error.reason == "ARTIFACT_UNTRUSTED"
            assert why in error.message
        described = await stub.Describe(inference_pb2.DescribeRequest(model="queued"))
        assert described.models[0].state == inference_pb2.MODEL_STATE_UNAVAILABLE
        assert "not the one" in described.models[0].state_reason


async def test_a_model_that_no_longer_fits_its_task_is_refused(
    server: Triton, keys: MeshKeys, tmp_path: Path
) -> None:
    """The catalog's contract counts before a request does."""
    tasks = tmp_path / "catalog" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "t.yaml").write_text(
        """
name: sums
inputs: [{name: features, datatype: FP32, shape: [1, 4]}]
outputs: [{name: total, datatype: FP32, shape: [1, 1]}]
candidates: [{id: x, path: local, model: halved_sum, version: "1"}]
"""
    )
    async with local(keys, server.url, catalog=tasks.parent) as stub:
        refused, other = await ask(
            stub,
            item("halved_sum", features([1, 2, 3]), name="refused"),
            item("echo", features([1]), name="other"),
        )
    error = failure(refused)
    assert error.reason == "CONTRACT_DIVERGES"
    assert "task sums" in error.message
    assert other.status.code == 0
