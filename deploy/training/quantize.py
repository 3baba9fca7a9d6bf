"""INT8 copies of trained models: `python -m deploy.training.quantize MODEL`.

Makes a dynamic and a static copy (calibrated with the training features), measures both beside the
original on the held-out rows (size, latency, agreement, the task's metrics), says whether the
better one pays, and if it does writes it as `<model>_int8` with its lineage in its card. Prints a
report as JSON.

Exit codes: 0 written, or measured with --dry-run; 1 it does not pay, and nothing was written;
2 wrong arguments; 3 no usable data, or nothing in the model that could be quantized.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import quantization

from deploy.training.export import INPUT
from deploy.training.lowering import lower
from deploy.training.models import CANDIDATES, Candidate, Split, measure, split
from deploy.training.offline import MissingDataError, offline_store, training_frame
from deploy.training.repository import MODEL_FILE, read_key, write_model
from services.local.manifest import CARD

ROOT = Path(__file__).resolve().parents[2]
BATCH = 64
MAIN = {"classifier": "roc_auc", "regressor": "rmse"}  # the metric that must not suffer
LOSS = 0.01  # relative loss of it that is borne
GAIN = 0.05  # relative change of size or latency from which it counts

# What a parent's card says of its own file: how far its ONNX is from what was fitted.
_PARENTS_OWN = ("artifact", "onnx_difference")
KINDS = ("MatMul", "Gemm", "Conv")  # operators that INT8 can make cheaper

Method = Literal["dynamic", "static"]


class NothingToQuantizeError(Exception):
    """The model holds no operator that INT8 could make cheaper."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One variant of a model.

    Attributes:
        bytes: Size of the artifact.
        one_us: Median time of one row, in microseconds, on one thread of this machine.
        batch_us: Median time of 64 rows.
        agreement: Share of the held-out rows on which it says the same as the original: the same
            label, or a value within 1 % of it.
        metrics: The task's metrics on the held-out rows.
    """

    bytes: int
    one_us: float
    batch_us: float
    agreement: float
    metrics: dict[str, float]


class OnnxModel:
    """An artifact with scikit-learn's methods, on one thread."""

    def __init__(self, artifact: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            artifact, options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, features: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        given = {INPUT: features.astype(np.float32)}
        return dict(zip(self._names, self._session.run(self._names, given), strict=True))

    def predict(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return labels, or values."""
        found = self.run(features)
        return found["label" if "label" in found else self._names[0]].reshape(-1)

    def predict_proba(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return both classes' probabilities."""
        of_one = self.run(features)["probability"]
        return np.hstack([1 - of_one, of_one])


class _Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
    """The training features, in batches."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(
            np.array_split(features, max(1, len(features) // BATCH))
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantize(artifact: bytes, method: Method, calibration: NDArray[np.float32]) -> bytes:
    """Return an INT8 copy.

    Raises:
        NothingToQuantizeError: nothing in it could be.
    """
    lowered = lower(artifact)
    if not {node.op_type for node in onnx.load_from_string(lowered).graph.node} & set(KINDS):
        raise NothingToQuantizeError("no operator of it can be quantized")
    with TemporaryDirectory(prefix="twinpath-quantize-") as scratch:
        source, target = Path(scratch) / "source.onnx", Path(scratch) / "target.onnx"
        source.write_bytes(lowered)
        if method == "dynamic":
            quantization.quantize_dynamic(source, target, op_types_to_quantize=list(KINDS))
        else:
            quantization.quantize_static(
                source, target, _Rows(calibration), op_types_to_quantize=list(KINDS)
            )
        return target.read_bytes()


def examine(
    candidate: Candidate, artifacts: Sequence[bytes], rows: Split, times: int = 300
) -> list[Measured]:
    """Measure variants of a model on the held-out rows; the first one is the original.

    The variants take turns in the measurement of time: what else the machine does hits them alike.
    """
    models = [OnnxModel(artifact) for artifact in artifacts]
    meant = models[0].predict(rows.held_out)
    one = _medians_us(models, rows.held_out[:1], times)
    batch = _medians_us(models, np.resize(rows.held_out, (BATCH, rows.held_out.shape[1])), times)
    found = []
    for index, model in enumerate(models):
        said = model.predict(rows.held_out)
        labels = candidate.kind == "classifier"
        same = said == meant if labels else np.isclose(said, meant, rtol=0.01)
        found.append(
            Measured(
                bytes=len(artifacts[index]),
                one_us=one[index],
                batch_us=batch[index],
                agreement=round(float(np.mean(same)), 4),
                metrics=measure(candidate, model, rows.held_out, rows.label_held_out),
            )
        )
    return found


def _medians_us(
    models: Sequence[OnnxModel], features: NDArray[np.float32], times: int
) -> list[float]:
    took: list[list[int]] = [[] for _ in models]
    for _ in range(times):
        for model, each in zip(models, took, strict=True):
            started = time.perf_counter_ns()
            model.run(features)
            each.append(time.perf_counter_ns() - started)
    return [round(statistics.median(each) / 1000, 1) for each in took]


def verdict(candidate: Candidate, original: Measured, copy: Measured) -> str:
    """Return why a copy does not pay; empty: it is better in something and worse in nothing."""
    name = MAIN[candidate.kind]
    before, after = original.metrics[name], copy.metrics[name]
    worse = before - after if candidate.kind == "classifier" else after - before
    if worse > LOSS * abs(before):
        return f"{name} goes from {before:g} to {after:g}"
    changes = {
        "larger": copy.bytes / original.bytes - 1,
        "slower at one row": copy.one_us / original.one_us - 1,
        f"slower at {BATCH} rows": copy.batch_us / original.batch_us - 1,
    }
    losses = [f"{share:.0%} {what}" for what, share in changes.items() if share > GAIN]
    if losses:
        return "it is " + ", ".join(losses)
    if min(changes.values()) > -GAIN:
        return f"it is neither {GAIN:.0%} smaller nor {GAIN:.0%} faster"
    return ""


def make_card(
    parent: dict[str, Any], method: Method, measured: Measured, rows: int
) -> dict[str, Any]:
    """Return the card of a copy: its parent's, but for what is its own, or not true of it."""
    kept = {name: said for name, said in parent.items() if name not in _PARENTS_OWN}
    return {
        **kept,
        "name": f"{parent['name']}_int8",
        "version": parent["version"],
        "summary": f"{parent['summary']}, INT8 ({method})",
        "lineage": {
            "made_from": {
                "name": parent["name"],
                "version": parent["version"],
                "digest": parent["artifact"]["digest"],
            },
            "method": f"onnxruntime {method} quantization to INT8",
            "calibration_rows": rows if method == "static" else 0,
            "onnxruntime": version("onnxruntime"),
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "metrics": {"split": "held out", **measured.metrics},
        "agreement_with_parent": measured.agreement,
    }


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Do what the arguments say; returns the report and the exit code.

    Raises:
        MissingDataError: no data.
        NothingToQuantizeError: nothing in it could be quantized.
    """
    (candidate,) = [c for c in CANDIDATES if c.name == args.model]
    folder = args.models / candidate.name / str(candidate.version)
    original = (folder / MODEL_FILE).read_bytes()
    with offline_store(args.repo) as store:
        rows = split(candidate, training_frame(store, candidate.task, args.repo / "data"))
    methods: list[Method] = ["dynamic", "static"] if args.method == "both" else [args.method]
    copies = {method: quantize(original, method, rows.train) for method in methods}
    first, *others = examine(candidate, [original, *copies.values()], rows)
    found = dict(zip(methods, others, strict=True))
    why = {method: verdict(candidate, first, measured) for method, measured in found.items()}
    best = min(found, key=lambda method: (bool(why[method]), found[method].batch_us))
    report: dict[str, Any] = {
        "model": candidate.name,
        "version": str(candidate.version),
        "original": asdict(first),
        "copies": {m: {**asdict(found[m]), "does_not_pay": why[m]} for m in found},
        "best": best,
        "pays": not why[best],
        "written": "",
    }
    if args.dry_run or (why[best] and not args.anyway):
        return report, 0 if args.dry_run else 1
    parent = json.loads((folder / CARD).read_text(encoding="utf-8"))
    card = make_card(parent, best, found[best], len(rows.train))
    key = None if args.key is None else read_key(args.key)
    report["written"] = str(write_model(args.models, card, copies[best], key=key))
    return report, 0


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    names = [c.name for c in CANDIDATES if c.path == "local"]
    parser = argparse.ArgumentParser(prog="quantize", description=__doc__)
    parser.add_argument("model", choices=names)
    parser.add_argument("--method", choices=("both", "dynamic", "static"), default="both")
    parser.add_argument("--dry-run", action="store_true", help="measure, write nothing")
    parser.add_argument("--anyway", action="store_true", help="write it even if it does not pay")
    parser.add_argument("--repo", type=Path, default=ROOT / "feature_repo")
    parser.add_argument("--models", type=Path, default=ROOT / ".twinpath" / "models")
    parser.add_argument("--key", type=Path, default=os.environ.get("TWINPATH_ARTIFACT_KEY") or None)
    args = parser.parse_args(argv)
    logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime's advice for other graphs
    try:
        report, code = run(args)
    except (MissingDataError, NothingToQuantizeError, OSError, ValueError) as error:
        sys.stderr.write(f"{args.model}: {error}\n")
        return 3
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
