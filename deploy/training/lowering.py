"""ONNX-ML's linear operators as plain ones: what quantization, TensorRT and GPUs understand.

`Scaler`, `LinearRegressor` and `LinearClassifier` become Sub, Mul, MatMul, Add and Sigmoid. The
result says the same up to FP32 rounding; whoever uses it compares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from deploy.training.export import OPSET

_ML = "ai.onnx.ml"


def lower(artifact: bytes) -> bytes:
    """Return the graph with its linear ONNX-ML operators replaced; others stay as they are."""
    model = onnx.load_from_string(artifact)
    graph = model.graph
    nodes: list[NodeProto] = []
    for node in graph.node:
        replaced = _REPLACE.get(node.op_type) if node.domain == _ML else None
        nodes += [node] if replaced is None else replaced(graph, node)
    del graph.node[:]
    graph.node.extend(nodes)
    if not any(node.domain == _ML for node in nodes):
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", OPSET[""]))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _constant(graph: onnx.GraphProto, name: str, values: Any, dtype: Any = np.float32) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
    return name


def _scaler(graph: onnx.GraphProto, node: NodeProto) -> list[NodeProto]:
    given, (out,) = _attributes(node), node.output
    offset = _constant(graph, f"{out}_shift", given["offset"])
    scale = _constant(graph, f"{out}_factor", given["scale"])
    return [
        helper.make_node("Sub", [node.input[0], offset], [f"{out}_centred"], f"{out}_sub"),
        helper.make_node("Mul", [f"{out}_centred", scale], [out], f"{out}_mul"),
    ]


def _linear(
    graph: onnx.GraphProto, node: NodeProto, out: str, columns: int, given: dict[str, Any]
) -> list[NodeProto]:
    weights = np.asarray(given["coefficients"], dtype=np.float32).reshape(columns, -1).T
    weight = _constant(graph, f"{out}_weight", np.ascontiguousarray(weights))
    bias = _constant(graph, f"{out}_bias", given.get("intercepts", [0.0] * columns))
    return [
        helper.make_node("MatMul", [node.input[0], weight], [f"{out}_product"], f"{out}_matmul"),
        helper.make_node("Add", [f"{out}_product", bias], [out], f"{out}_add"),
    ]


def _regressor(graph: onnx.GraphProto, node: NodeProto) -> list[NodeProto]:
    given = _attributes(node)
    if given.get("post_transform", b"NONE") != b"NONE":
        return [node]
    return _linear(graph, node, node.output[0], int(given.get("targets", 1)), given)


def _classifier(graph: onnx.GraphProto, node: NodeProto) -> list[NodeProto]:
    given = _attributes(node)
    classes = list(given.get("classlabels_ints", []))
    known = given.get("post_transform") == b"LOGISTIC" and len(given["intercepts"]) == len(classes)
    if not known or not classes:
        return [node]
    label, probabilities = node.output
    scores = f"{probabilities}_scores"
    order = _constant(graph, f"{label}_classes", classes, np.int64)
    return [
        *_linear(graph, node, scores, len(classes), given),
        helper.make_node("Sigmoid", [scores], [probabilities], f"{probabilities}_sigmoid"),
        helper.make_node("ArgMax", [scores], [f"{label}_at"], f"{label}_max", axis=1, keepdims=0),
        helper.make_node("Gather", [order, f"{label}_at"], [label], f"{label}_of"),
    ]


_REPLACE = {"Scaler": _scaler, "LinearRegressor": _regressor, "LinearClassifier": _classifier}
