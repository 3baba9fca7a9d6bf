"""The models: which estimator for which candidate, how it is fitted, how good it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deploy.training.tasks import DIABETES_PROGRESSION, TUMOUR_TRIAGE, Task

SEED = 7
HELD_OUT = 0.25

Kind = Literal["classifier", "regressor"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model to train: its name and version, its task, the path it serves, its estimator."""

    name: str
    version: int
    task: Task
    path: Literal["local", "remote"]
    kind: Kind
    estimator: Callable[[], Any]
    summary: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model with what it was fitted and measured on.

    Attributes:
        model: the scikit-learn estimator.
        train: features of the training split, [rows, n], FP32, in model order.
        held_out: features of the held-out split, the same.
        metrics: measured on the held-out split.
    """

    model: Any
    train: NDArray[np.float32]
    held_out: NDArray[np.float32]
    metrics: dict[str, float]


def _tumour_small() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))


def _tumour_large() -> Any:
    return GradientBoostingClassifier(
        n_estimators=300, learning_rate=0.05, max_depth=3, subsample=0.7, random_state=SEED
    )


def _diabetes_small() -> Any:
    return make_pipeline(StandardScaler(), Ridge(alpha=10.0))


def _diabetes_large() -> Any:
    return GradientBoostingRegressor(
        n_estimators=800,
        learning_rate=0.01,
        max_depth=3,
        min_samples_leaf=8,
        subsample=0.6,
        max_features=0.4,
        random_state=SEED,
    )


CANDIDATES = (
    Candidate(
        name="tumour_small",
        version=1,
        task=TUMOUR_TRIAGE,
        path="local",
        kind="classifier",
        estimator=_tumour_small,
        summary="standardized logistic regression",
    ),
    # A vendor offers it; policy must never let the restricted task reach it.
    Candidate(
        name="tumour_large",
        version=1,
        task=TUMOUR_TRIAGE,
        path="remote",
        kind="classifier",
        estimator=_tumour_large,
        summary="gradient boosting, 300 trees of depth 3",
    ),
    Candidate(
        name="diabetes_small",
        version=1,
        task=DIABETES_PROGRESSION,
        path="local",
        kind="regressor",
        estimator=_diabetes_small,
        summary="standardized ridge regression",
    ),
    Candidate(
        name="diabetes_large",
        version=1,
        task=DIABETES_PROGRESSION,
        path="remote",
        kind="regressor",
        estimator=_diabetes_large,
        summary="gradient boosting, 800 trees of depth 3",
    ),
)


@dataclass(frozen=True, slots=True)
class Split:
    """A candidate's rows, split by the seed: features [rows, n] in FP32, and labels [rows]."""

    train: NDArray[np.float32]
    held_out: NDArray[np.float32]
    label_train: NDArray[Any]
    label_held_out: NDArray[Any]


def split(candidate: Candidate, frame: pd.DataFrame) -> Split:
    """Split a training frame, the same way every time.

    The features are rounded to FP32 first: that is what a model gets when it serves.
    """
    features = frame[list(candidate.task.feature_names)].to_numpy(dtype=np.float32)
    label = frame[candidate.task.label].to_numpy()
    return Split(
        *train_test_split(
            features,
            label,
            test_size=HELD_OUT,
            random_state=SEED,
            stratify=label if candidate.kind == "classifier" else None,
        )
    )


def fit(candidate: Candidate, frame: pd.DataFrame) -> Fitted:
    """Fit on a seeded split and measure on the rest."""
    rows = split(candidate, frame)
    model = candidate.estimator().fit(rows.train.astype(np.float64), rows.label_train)
    metrics = measure(candidate, model, rows.held_out.astype(np.float64), rows.label_held_out)
    return Fitted(model=model, train=rows.train, held_out=rows.held_out, metrics=metrics)


def measure(
    candidate: Candidate, model: Any, features: NDArray[Any], label: NDArray[Any]
) -> dict[str, float]:
    """Return a model's metrics; it needs `predict`, and `predict_proba` for a classifier."""
    metrics = _classifier_metrics if candidate.kind == "classifier" else _regressor_metrics
    return metrics(model, features, label)


def _classifier_metrics(
    model: Any, features: NDArray[np.float64], label: NDArray[Any]
) -> dict[str, float]:
    probability = model.predict_proba(features)[:, 1]
    predicted = model.predict(features)
    return _rounded(
        roc_auc=roc_auc_score(label, probability),
        accuracy=accuracy_score(label, predicted),
        recall_malignant=recall_score(label, predicted),
        log_loss=log_loss(label, probability),
        brier=brier_score_loss(label, probability),
    )


def _regressor_metrics(
    model: Any, features: NDArray[np.float64], label: NDArray[Any]
) -> dict[str, float]:
    predicted = model.predict(features)
    return _rounded(
        rmse=mean_squared_error(label, predicted) ** 0.5,
        mae=mean_absolute_error(label, predicted),
        r2=r2_score(label, predicted),
    )


def _rounded(**metrics: float) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in metrics.items()}
