"""The `onnxruntime` backend's batching, with a stand-in for Triton's own Python module."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

SOURCE = Path(__file__).parents[3] / "deploy/triton/backends/onnxruntime/model.py"


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        """As Triton's."""
        return self._name

    def as_numpy(self):
        """As Triton's."""
        return self._array


class TritonError(Exception):
    INVALID_ARG = 3

    def __init__(self, message, code):
        super().__init__(message)


class InferenceResponse:
    def __init__(self, output_tensors, error=None):
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Request:
    def __init__(self, wanted=(), **arrays):
        self.tensors = [Tensor(name, array) for name, array in arrays.items()]
        self.wanted = wanted

    def requested_output_names(self):
        """As Triton's."""
        return list(self.wanted)


@pytest.fixture
def backend(monkeypatch):
    """The backend's module, loaded as Triton's stub loads it."""
    utils = types.ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.TritonError, utils.InferenceResponse = (
        Tensor,
        TritonError,
        InferenceResponse,
    )
    utils.TritonModelException = type("TritonModelException", (Exception,), {})
    utils.get_input_tensor_by_name = lambda request, name: next(
        (tensor for tensor in request.tensors if tensor.name() == name), None
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    spec = importlib.util.spec_from_file_location("onnxruntime_backend_under_test", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(folder: Path, node, kind, shape_in, shape_out=None) -> None:
    """Write a graph with one node from `x` to `y`."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, shape_in)],
        [helper.make_tensor_value_info("y", kind, shape_out or shape_in)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes(model.SerializeToString())


def load(
    backend, folder: Path, *, batch: int = 8, kind: str = "TYPE_FP32", dims=(2,), **parameters
):
    """Load the model in `folder` with a configuration of one input and one output."""
    tensor = {"data_type": kind, "dims": [str(size) for size in dims]}
    config = {
        "max_batch_size": batch,
        "input": [{"name": "x", **tensor}],
        "output": [{"name": "y", **tensor}],
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }
    model = backend.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": "CPU",
        }
    )
    return model


@pytest.fixture
def doubling(backend, tmp_path):
    """A loaded model that doubles [N, 2]."""
    save(tmp_path, helper.make_node("Add", ["x", "x"], ["y"]), TensorProto.FLOAT, ["N", 2])
    return load(backend, tmp_path)


def test_requests_share_one_run_and_get_their_own_rows(doubling) -> None:
    """Three requests make one run of the session, and each gets its own rows back."""
    runs = []
    session = doubling._session
    doubling._session = types.SimpleNamespace(
        run=lambda names, feeds: runs.append(len(feeds["x"])) or session.run(names, feeds)
    )
    arrays = [np.full((rows, 2), rows, np.float32) for rows in (1, 3, 2)]
    responses = doubling.execute([Request(x=array) for array in arrays])
    assert runs == [6]
    for array, response in zip(arrays, responses, strict=True):
        np.testing.assert_array_equal(response.outputs["y"], array * 2)


def test_a_bad_request_fails_alone(doubling) -> None:
    """A missing input or a wrong width is that request's error; the others are answered."""
    good = np.ones((1, 2), np.float32)
    responses = doubling.execute(
        [
            Request(x=good),
            Request(z=good),
            Request(x=np.ones((1, 5), np.float32)),
            Request(x=good),
        ]
    )
    assert [response.error is None for response in responses] == [True, False, False, True]
    assert "'x' is missing" in str(responses[1].error)


def test_a_failing_batch_is_tried_one_by_one(doubling) -> None:
    """If the stacked run raises, each request runs alone and only the culprit fails."""
    session = doubling._session

    def run(names, feeds):
        if (feeds["x"] == 13).any():
            raise RuntimeError("thirteen")
        return session.run(names, feeds)

    doubling._session = types.SimpleNamespace(run=run)
    responses = doubling.execute([Request(x=np.full((1, 2), v, np.float32)) for v in (1, 13, 2)])
    assert [response.error is None for response in responses] == [True, False, True]
    assert "thirteen" in str(responses[1].error)


def test_only_requested_outputs_are_returned(doubling) -> None:
    """A request that names no output of ours gets none; one that names none gets all."""
    array = np.ones((1, 2), np.float32)
    some, every = doubling.execute([Request(x=array, wanted=("other",)), Request(x=array)])
    assert some.outputs == {}
    assert set(every.outputs) == {"y"}


def test_text_travels_as_bytes(backend, tmp_path) -> None:
    """BYTES go in and out as bytes; invalid UTF-8 is that request's error."""
    save(tmp_path, helper.make_node("Identity", ["x"], ["y"]), TensorProto.STRING, ["N", 1])
    model = load(backend, tmp_path, kind="TYPE_STRING", dims=(1,))
    good, bad = model.execute(
        [
            Request(x=np.array([["ä".encode()]], object)),
            Request(x=np.array([[b"\xff"]], object)),
        ]
    )
    assert good.outputs["y"].tolist() == [["ä".encode()]]
    assert "UTF-8" in str(bad.error)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dims": (3,)}, "the graph TYPE_FP32"),
        ({"kind": "TYPE_FP64"}, "the configuration says TYPE_FP64"),
        ({"intra_op_thread_count": "many"}, "must be a number"),
    ],
)
def test_a_diverging_configuration_stops_the_load(backend, tmp_path, change, reason) -> None:
    """Configuration and graph that disagree, or a bad parameter: the load fails and says why."""
    save(tmp_path, helper.make_node("Identity", ["x"], ["y"]), TensorProto.FLOAT, ["N", 2])
    with pytest.raises(Exception, match=reason):
        load(backend, tmp_path, **change)


def test_a_fixed_batch_dimension_needs_an_unbatched_configuration(backend, tmp_path) -> None:
    """A graph without a free first dimension loads with max_batch_size 0 only, and runs alone."""
    save(tmp_path, helper.make_node("Identity", ["x"], ["y"]), TensorProto.FLOAT, [2])
    with pytest.raises(Exception, match="max_batch_size must be 0"):
        load(backend, tmp_path)
    model = load(backend, tmp_path, batch=0)
    responses = model.execute([Request(x=np.full(2, v, np.float32)) for v in (1, 2)])
    assert [response.outputs["y"].tolist() for response in responses] == [[1, 1], [2, 2]]


@pytest.mark.parametrize("content", [None, b"junk"])
def test_a_missing_or_corrupt_artifact_is_named(backend, tmp_path, content) -> None:
    """No model file, or one that is no ONNX: the load fails with the file's name."""
    (tmp_path / "1").mkdir()
    if content:
        (tmp_path / "1" / "model.onnx").write_bytes(content)
    with pytest.raises(Exception, match=r"model\.onnx"):
        load(backend, tmp_path)
