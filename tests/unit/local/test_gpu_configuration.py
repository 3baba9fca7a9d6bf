"""The GPU configuration: valid for Triton, and the same tensors as on CPUs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.training.export import INPUT, OUTPUTS
from deploy.training.models import CANDIDATES
from deploy.training.repository import triton_config
from deploy.training.summarizer import CONFIG, NAME
from services.local.contracts import Contracts
from services.local.triton import with_versions
from tests.support import ROOT

GPU = ROOT / "deploy" / "triton" / "gpu"
LOCAL = {candidate.name: candidate for candidate in CANDIDATES if candidate.path == "local"}
KINDS = model_config_pb2.ModelInstanceGroup.Kind


def parsed(text: str) -> Any:
    """A configuration; an unknown field or value raises."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def on_gpu(name: str) -> Any:
    """A model's GPU configuration."""
    return parsed((GPU / name / "config.pbtxt").read_text())


def on_cpu(name: str) -> Any:
    """What the training writes."""
    if name == NAME:
        return parsed(CONFIG)
    candidate = LOCAL[name]
    card = {
        "name": name,
        "task": candidate.task.name,
        "summary": candidate.summary,
        "inputs": [
            {"name": INPUT, "datatype": "FP32", "shape": [-1, len(candidate.task.features)]}
        ],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": [-1, 1]}
            for output, datatype in OUTPUTS[candidate.kind]
        ],
    }
    return parsed(triton_config(card))


def test_every_local_model_has_one() -> None:
    """And no other model."""
    assert {path.parent.name for path in GPU.glob("*/config.pbtxt")} == {*LOCAL, NAME}


@pytest.mark.parametrize("name", [*LOCAL, NAME])
def test_tensors_are_those_of_the_cpu(name: str) -> None:
    """So that neither catalog nor callers notice where a model runs."""
    gpu, cpu = on_gpu(name), on_cpu(name)
    assert gpu.name == cpu.name == name
    assert list(gpu.input) == list(cpu.input)
    assert list(gpu.output) == list(cpu.output)
    assert gpu.max_batch_size == cpu.max_batch_size
    assert gpu.model_transaction_policy == cpu.model_transaction_policy


@pytest.mark.parametrize("name", LOCAL)
def test_onnx_models_ask_for_a_gpu_and_tensorrt(name: str) -> None:
    """One instance on each; the text model is another matter."""
    config = on_gpu(name)
    assert [group.kind for group in config.instance_group] == [KINDS.Value("KIND_GPU")]
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [accelerator.name for accelerator in accelerators] == ["tensorrt"]


@pytest.mark.parametrize("name", LOCAL)
def test_queues_are_the_same_everywhere(name: str) -> None:
    """None has priorities or a policy, which make requests wait; what the budget sets is alike."""
    cpu, gpu = on_cpu(name), on_gpu(name)
    assert cpu.dynamic_batching == gpu.dynamic_batching
    assert not cpu.dynamic_batching.priority_levels
    assert not cpu.dynamic_batching.HasField("default_queue_policy")
    contracts = Contracts(ROOT / "deploy" / "catalog")
    contracts.read()
    budget = contracts.budget_ms(name)
    assert budget > 0
    for text in (str(cpu), str(gpu)):
        batching = json.loads(with_versions(text, ["1"], budget))["dynamic_batching"]
        assert batching["preferred_batch_size"] == [16, 64]
        # One caller alone must not wait for company that never comes.
        assert batching.get("max_queue_delay_microseconds", "0") == "0"


def test_the_text_model_is_vllms() -> None:
    """It leaves the placing to vLLM, and runs files of its version, which its card can list."""
    config = on_gpu(NAME)
    assert config.backend == "vllm"
    assert [group.kind for group in config.instance_group] == [KINDS.Value("KIND_MODEL")]
    engine = json.loads((GPU / NAME / "1" / "model.json").read_text())
    assert engine["model"].startswith(f"/models/{NAME}/1/")  # no name of a hub, fetched at load
