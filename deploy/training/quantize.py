"""INT8 copies of trained models: `python -m deploy.training.quantize MODEL`.

Makes a dynamic and a static copy (calibrated with the training data), measures both beside the
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
from numpy.typing import NDArray
from onnxruntime import quantization

from deploy.training import embedding
from deploy.training.export import INPUT
from deploy.training.lowering import lower
from deploy.training.models import CANDIDATES, split
from deploy.training.offline import MissingDataError, offline_store, training_frame
from deploy.training.repository import MODEL_FILE, read_key, write_model
from deploy.training.subjects import OnnxModel, Subject, tabular, texts
from services.local.manifest import CARD

ROOT = Path(__file__).resolve().parents[2]
BATCH = 64
LOSS = 0.01  # relative loss of the main metric that is borne
GAIN = 0.05  # relative change of size or latency from which it counts

# What a parent's card says of its own file: how far its ONNX is from what was fitted.
_PARENTS_OWN = ("artifact", "onnx_difference")
KINDS = ("MatMul", "Gemm", "Conv")  # operators that INT8 can make cheaper
# The type of what ONNX's own inference of types stops at: the word counts of ONNX-ML's TF-IDF.
_OPTIONS = {"DefaultTensorType": onnx.TensorProto.FLOAT}

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
        agreement: Share of the held-out rows on which it says the same as the original.
        metrics: The task's metrics on the held-out rows.
    """

    bytes: int
    one_us: float
    batch_us: float
    agreement: float
    metrics: dict[str, float]


class _Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
    """The training rows, in batches."""

    def __init__(self, name: str, rows: NDArray[Any]) -> None:
        self._name = name
        self._batches: Iterator[NDArray[Any]] = iter(
            np.array_split(rows, max(1, len(rows) // BATCH))
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def quantize(
    artifact: bytes, method: Method, calibration: NDArray[Any], name: str = INPUT
) -> bytes:
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
            quantization.quantize_dynamic(
                source, target, op_types_to_quantize=list(KINDS), extra_options=_OPTIONS
            )
        else:
            quantization.quantize_static(
                source,
                target,
                _Rows(name, calibration),
                op_types_to_quantize=list(KINDS),
                extra_options=_OPTIONS,
            )
        return target.read_bytes()


def examine(subject: Subject, artifacts: Sequence[bytes], times: int = 300) -> list[Measured]:
    """Measure variants of a model on the held-out rows; the first one is the original.

    The variants take turns in the measurement of time: what else the machine does hits them alike.
    """
    models = [OnnxModel(artifact) for artifact in artifacts]
    rows = subject.held_out
    meant = models[0].run(rows)
    one = _medians_us(models, rows[:1], times)
    batch = _medians_us(models, np.resize(rows, (BATCH, rows.shape[1])), times)
    return [
        Measured(
            bytes=len(artifacts[index]),
            one_us=one[index],
            batch_us=batch[index],
            agreement=round(float(np.mean(subject.same(meant, model.run(rows)))), 4),
            metrics=subject.metrics(model),
        )
        for index, model in enumerate(models)
    ]


def _medians_us(models: Sequence[OnnxModel], rows: NDArray[Any], times: int) -> list[float]:
    took: list[list[int]] = [[] for _ in models]
    for _ in range(times):
        for model, each in zip(models, took, strict=True):
            started = time.perf_counter_ns()
            model.run(rows)
            each.append(time.perf_counter_ns() - started)
    return [round(statistics.median(each) / 1000, 1) for each in took]


def verdict(subject: Subject, original: Measured, copy: Measured) -> str:
    """Return why a copy does not pay; empty: it is better in something and worse in nothing."""
    before, after = original.metrics[subject.main], copy.metrics[subject.main]
    worse = before - after if subject.rises else after - before
    if worse > LOSS * abs(before):
        return f"{subject.main} goes from {before:g} to {after:g}"
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


def _newest(model: Path) -> str:
    """Return a model's newest version.

    Raises:
        ValueError: There is none.
    """
    versions = [path.name for path in model.glob("*") if path.name.isdigit()]
    if not versions:
        raise ValueError(f"{model} holds no version")
    return max(versions, key=int)


def _subject(model: str, repo: Path) -> Subject:
    """Return what a model is measured with."""
    if model == embedding.NAME:
        return texts()
    (candidate,) = [c for c in CANDIDATES if c.name == model]
    with offline_store(repo) as store:
        frame = training_frame(store, candidate.task, repo / "data")
    return tabular(candidate, split(candidate, frame))


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Do what the arguments say; returns the report and the exit code.

    Raises:
        MissingDataError: no data.
        NothingToQuantizeError: nothing in it could be quantized.
    """
    folder = args.models / args.model / (args.version or _newest(args.models / args.model))
    original = (folder / MODEL_FILE).read_bytes()
    subject = _subject(args.model, args.repo)
    methods: list[Method] = ["dynamic", "static"] if args.method == "both" else [args.method]
    copies = {m: quantize(original, m, subject.train, subject.input) for m in methods}
    first, *others = examine(subject, [original, *copies.values()])
    found = dict(zip(methods, others, strict=True))
    why = {method: verdict(subject, first, measured) for method, measured in found.items()}
    best = min(found, key=lambda method: (bool(why[method]), found[method].batch_us))
    report: dict[str, Any] = {
        "model": args.model,
        "version": folder.name,
        "original": asdict(first),
        "copies": {m: {**asdict(found[m]), "does_not_pay": why[m]} for m in found},
        "best": best,
        "pays": not why[best],
        "written": "",
    }
    if args.dry_run or (why[best] and not args.anyway):
        return report, 0 if args.dry_run else 1
    parent = json.loads((folder / CARD).read_text(encoding="utf-8"))
    card = make_card(parent, best, found[best], len(subject.train))
    key = None if args.key is None else read_key(args.key)
    report["written"] = str(write_model(args.models, card, copies[best], key=key))
    return report, 0


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    names = [*(c.name for c in CANDIDATES if c.path == "local"), embedding.NAME]
    parser = argparse.ArgumentParser(prog="quantize", description=__doc__)
    parser.add_argument("model", choices=names)
    parser.add_argument("--version", default="", help="of the model; the newest, if not given")
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
