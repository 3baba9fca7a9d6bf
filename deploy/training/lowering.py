"""ONNX-ML's linear operators as plain ones: what quantization, TensorRT and GPUs understand.

    python -m deploy.training.lowering MODEL.onnx LOWERED.onnx

`Scaler`, `LinearRegressor` and `LinearClassifier` become Sub, Mul, MatMul, Add and Sigmoid. The
result says the same up to FP32 rounding; the command compares both before it writes, on random rows
about where the features lie: the card beside the model says where.

Exit codes: 0 written; 1 nothing in it was replaced, the results differ, or they can't be compared;
2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from deploy.training.export import INPUT, OPSET
from services.local.manifest import CARD

_ML = "ai.onnx.ml"
_APART = 1e-3


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


def rows_like(model: Path, count: int = 256) -> NDArray[np.float32]:
    """Return random rows of features [count, n], as the card beside a model says they are spread.

    Raises:
        OSError, ValueError, KeyError: there is no such card.
    """
    card = json.loads(model.with_name(CARD).read_bytes())
    known = [card["reference_statistics"][feature["name"]] for feature in card["features"]]
    middle = np.array([statistics["mean"] for statistics in known])
    spread = np.array([statistics["std"] for statistics in known])
    noise = np.random.default_rng(0).normal(size=(count, len(known)))
    return (middle + spread * noise).astype(np.float32)


def difference(one: bytes, other: bytes, rows: NDArray[np.float32]) -> float:
    """Return how far two graphs' real outputs are apart, relative to max(1, |x|)."""
    sessions = [
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        for graph in (one, other)
    ]
    names = [tensor.name for tensor in sessions[0].get_outputs() if "float" in tensor.type]
    meant, said = (session.run(names, {INPUT: rows}) for session in sessions)
    return max(
        float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a))))
        for a, b in zip(meant, said, strict=True)
    )


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="lowering", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args(argv)
    original = args.source.read_bytes()
    before = [node.op_type for node in onnx.load_from_string(original).graph.node]
    lowered = lower(original)
    if before == [node.op_type for node in onnx.load_from_string(lowered).graph.node]:
        sys.stderr.write(f"{args.source}: nothing in it can be replaced\n")
        return 1
    try:
        apart = difference(original, lowered, rows_like(args.source))
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{args.source}: no card says where its features lie: {error}\n")
        return 1
    if not apart <= _APART:
        sys.stderr.write(f"{args.source}: the lowered graph differs by {apart:g}\n")
        return 1
    args.target.write_bytes(lowered)
    sys.stdout.write(f"wrote {args.target}; on random rows it differs by {apart:.1g}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
