"""What a trained model is measured with when a copy of it is made: rows, answers, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from deploy.training import embedding
from deploy.training.export import INPUT
from deploy.training.models import Candidate, Split, measure

Outputs = Mapping[str, NDArray[Any]]


class OnnxModel:
    """An artifact with scikit-learn's methods, on one thread."""

    def __init__(self, artifact: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            artifact, options, providers=["CPUExecutionProvider"]
        )
        (self._input,) = [given.name for given in self._session.get_inputs()]
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, for rows of features or of texts."""
        given = {self._input: rows if rows.dtype == object else rows.astype(np.float32)}
        return dict(zip(self._names, self._session.run(self._names, given), strict=True))

    def predict(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return labels, or values."""
        found = self.run(features)
        return found["label" if "label" in found else self._names[0]].reshape(-1)

    def predict_proba(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return both classes' probabilities."""
        of_one = self.run(features)["probability"]
        return np.hstack([1 - of_one, of_one])


@dataclass(frozen=True, slots=True)
class Subject:
    """A model's rows, and what counts for it.

    Attributes:
        input: The name of its one input.
        train: The rows that it was trained with, as its input takes them; they calibrate copies.
        held_out: Rows that it has not seen.
        main: The metric that must not suffer.
        rises: More of that metric is better.
        same: By two models' outputs for the held-out rows: whether they say the same, row by row.
        metrics: A model's metrics on the held-out rows.
    """

    input: str
    train: NDArray[Any]
    held_out: NDArray[Any]
    main: str
    rises: bool
    same: Callable[[Outputs, Outputs], NDArray[np.bool_]]
    metrics: Callable[[OnnxModel], dict[str, float]]


def tabular(candidate: Candidate, rows: Split) -> Subject:
    """Return the subject of a model of features: the same label, or a value within 1 %."""

    def same(meant: Outputs, said: Outputs) -> NDArray[np.bool_]:
        if "label" in meant:
            return np.asarray(meant["label"] == said["label"]).reshape(-1)
        (name,) = meant
        return np.isclose(said[name], meant[name], rtol=0.01).reshape(-1)

    classifies = candidate.kind == "classifier"
    return Subject(
        input=INPUT,
        train=rows.train,
        held_out=rows.held_out,
        main="roc_auc" if classifies else "rmse",
        rises=classifies,
        same=same,
        metrics=lambda model: measure(candidate, model, rows.held_out, rows.label_held_out),
    )


def texts() -> Subject:
    """Return the subject of the text embedding: a vector within 8 degrees of the original's."""
    train, rest = embedding.split()
    known, held_out = (
        np.array([[text] for _, text in part], dtype=object) for part in (train, rest)
    )

    def same(meant: Outputs, said: Outputs) -> NDArray[np.bool_]:
        one, other = meant["embedding"], said["embedding"]
        return np.asarray((one * other).sum(axis=1) >= 0.99)

    def metrics(model: OnnxModel) -> dict[str, float]:
        new, old = (model.run(part)["embedding"] for part in (held_out, known))
        return {embedding.METRIC: embedding.nearest_share(new, old, rest, train)}

    return Subject("text", known, held_out, embedding.METRIC, True, same, metrics)
