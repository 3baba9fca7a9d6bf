"""The model card: what a model is, what it was made of, how good it is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.training.export import INPUT, OUTPUTS
from deploy.training.models import HELD_OUT, SEED, Candidate, Fitted

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def reference_statistics(
    names: Sequence[str], features: NDArray[np.float32]
) -> dict[str, dict[str, Any]]:
    """Summarize each feature of [rows, n]; nulls (NaN) count in `null_share` and nowhere else."""
    summary: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        column = features[:, index].astype(np.float64)
        known = column[~np.isnan(column)]
        if not len(known):
            summary[name] = {"null_share": 1.0}
            continue
        summary[name] = {
            "mean": float(known.mean()),
            "std": float(known.std()),
            "min": float(known.min()),
            "max": float(known.max()),
            "quantiles": {f"{q:g}": float(np.quantile(known, q)) for q in QUANTILES},
            "null_share": float(1.0 - len(known) / len(column)),
        }
    return summary


def code_version(folder: Path) -> str | None:
    """Return the git commit of `folder`, with `+changes` if the tree differs; None outside git."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*arguments: str) -> str | None:
        done = subprocess.run(
            [git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if ask("status", "--porcelain", "--", ".") else commit


def make_card(
    candidate: Candidate,
    fitted: Fitted,
    *,
    difference: float,
    seconds: float,
    now: datetime,
    code: str | None,
) -> dict[str, Any]:
    """Assemble the card, but for the list of files, which is made where they are written.

    All but `trained_at`, `training_seconds` and `code` is reproducible.

    Args:
        candidate: what was trained.
        fitted: the fitted model with its splits and metrics.
        difference: the largest relative difference between ONNX and scikit-learn.
        seconds: wall time of the fit.
        now: when it was trained.
        code: commit of the training code, None if unknown.
    """
    task = candidate.task
    return {
        "name": candidate.name,
        "version": str(candidate.version),
        "task": task.name,
        "path": candidate.path,
        "summary": candidate.summary,
        "feature_service": task.feature_service,
        "request_fields": list(task.request_fields),
        "features": [{"name": name, "view": view} for name, view in task.features],
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, len(task.features)]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, 1]}
            for name, datatype in OUTPUTS[candidate.kind]
        ],
        # A plausible row: with it a server warms the model up.
        "example": {INPUT: [[float(x) for x in np.nanmedian(fitted.train, axis=0)]]},
        "data": task.data,
        "training": {
            "rows": len(fitted.train),
            "held_out_rows": len(fitted.held_out),
            "held_out_share": HELD_OUT,
            "seed": SEED,
            "trained_at": now.isoformat(timespec="seconds"),
            "training_seconds": round(seconds, 3),
            "energy_joules": None,
            "code": code,
            "libraries": {
                name: version(name) for name in ("scikit-learn", "skl2onnx", "onnx", "feast")
            },
        },
        "metrics": {"split": "held out", **fitted.metrics},
        "onnx_difference": float(f"{difference:.3g}"),
        "reference_statistics": reference_statistics(task.feature_names, fitted.train),
        "limits": "A demonstration model on a small public data set. Not for medical use.",
    }
