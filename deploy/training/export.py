"""scikit-learn to ONNX with the contract's tensors, and the proof that both say the same."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType

from deploy.training.models import Candidate, Kind

INPUT = "features"
OUTPUTS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "classifier": (("probability", "FP32"), ("label", "INT64")),
    "regressor": (("progression", "FP32"),),
}
# Old enough for the ONNX Runtime of any Triton image of the last years.
OPSET = {"": 17, "ai.onnx.ml": 3}
_DOC = "made by deploy/training of Twinpath"


class ExportMismatchError(Exception):
    """ONNX Runtime's answers differ from scikit-learn's by more than the tolerance."""


def export(candidate: Candidate, model: Any) -> bytes:
    """Return the model as ONNX: input `features` FP32 [N, n], outputs [N, 1].

    A classifier gives `probability` (FP32, of class 1) and `label` (INT64), a regressor
    `progression` (FP32). The bytes are the same for the same fitted model.
    """
    width = len(candidate.task.feature_names)
    options = {id(model): {"zipmap": False}} if candidate.kind == "classifier" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = convert_sklearn(
            model,
            name=f"{candidate.name}_{candidate.version}",
            initial_types=[(INPUT, FloatTensorType([None, width]))],
            options=options,
            target_opset=OPSET,
            doc_string=_DOC,
        )
    if candidate.kind == "classifier":
        _shape_classifier(graph)
    else:
        _name_output(graph, "progression")
    _batch_dimension(graph)
    onnx.checker.check_model(graph, full_check=True)
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


def _shape_classifier(model: onnx.ModelProto) -> None:
    """Turn the converter's `label` [N] and `probabilities` [N, 2] into two [N, 1] outputs."""
    graph = model.graph
    label, probabilities = (output.name for output in graph.output)
    for node in graph.node:
        node.output[:] = ["label_flat" if name == label else name for name in node.output]
        node.input[:] = ["label_flat" if name == label else name for name in node.input]
    graph.initializer.append(helper.make_tensor("malignant_column", TensorProto.INT64, [1], [1]))
    graph.initializer.append(helper.make_tensor("as_column", TensorProto.INT64, [2], [-1, 1]))
    graph.node.append(
        helper.make_node(
            "Gather", [probabilities, "malignant_column"], ["probability"], "column_1", axis=1
        )
    )
    graph.node.append(
        helper.make_node("Reshape", ["label_flat", "as_column"], ["label"], "label_column")
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None, 1]))
    graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, [None, 1]))


def _name_output(model: onnx.ModelProto, name: str) -> None:
    """Rename the single output."""
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = [name if old == output.name else old for old in node.output]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]))


def _batch_dimension(model: onnx.ModelProto) -> None:
    """Name the free first dimension, so that a reader sees that it is the batch."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def verify(
    candidate: Candidate, model: Any, artifact: bytes, features: NDArray[np.float32]
) -> float:
    """Compare ONNX Runtime with scikit-learn on the same FP32 rows.

    Returns:
        The largest difference, relative to max(1, |scikit-learn's value|).

    Raises:
        ExportMismatchError: larger than 1e-4, or a label differs where the probability is clear.
    """
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    names = [name for name, _ in OUTPUTS[candidate.kind]]
    answers = dict(zip(names, session.run(names, {INPUT: features}), strict=True))
    exact = features.astype(np.float64)
    rows = len(features)
    if candidate.kind == "classifier":
        expected = model.predict_proba(exact)[:, 1:2]
        got = answers["probability"]
        clear = np.abs(expected - 0.5) > 1e-3
        if answers["label"].shape != (rows, 1) or answers["label"].dtype != np.int64:
            raise ExportMismatchError(f"{candidate.name}: label is not INT64 [{rows}, 1]")
        if not np.array_equal(answers["label"][clear], model.predict(exact)[:, None][clear]):
            raise ExportMismatchError(f"{candidate.name}: labels differ")
    else:
        expected = model.predict(exact)[:, None]
        got = answers["progression"]
    if got.shape != (rows, 1) or got.dtype != np.float32:
        raise ExportMismatchError(f"{candidate.name}: {got.dtype} {got.shape}, not [{rows}, 1]")
    worst = float(np.max(np.abs(got - expected) / np.maximum(1.0, np.abs(expected))))
    if not worst <= 1e-4:
        raise ExportMismatchError(f"{candidate.name}: ONNX differs from scikit-learn by {worst:g}")
    return worst
