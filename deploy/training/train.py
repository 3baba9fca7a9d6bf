"""Train the models: `python -m deploy.training.train`.

Point-in-time features from the Feast repo, a seeded fit, ONNX, a check that ONNX Runtime and
scikit-learn agree, then the Triton model repository (local) and the stand-in vendor's artifact
(remote), each with a card. Needs no Redis and no running service; the same data and libraries give
the same bytes.

Exit codes: 0 all written; 1 an export that differs from its model (nothing of it is written);
2 wrong arguments; 3 no usable data.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.training.cards import code_version, make_card
from deploy.training.embedding import write_embedding
from deploy.training.export import ExportMismatchError, export, verify
from deploy.training.models import CANDIDATES, fit
from deploy.training.offline import MissingDataError, offline_store, training_frame
from deploy.training.repository import read_key, renew, write_model
from deploy.training.summarizer import write_summarizer

ROOT = Path(__file__).resolve().parents[2]


def train(repo: Path, models: Path, artifacts: Path, key: Ed25519PrivateKey | None = None) -> None:
    """Train every candidate and write it.

    Args:
        repo: the Feast repo, with its data built.
        models: Triton's model repository, for candidates of the local path.
        artifacts: the stand-in vendor's folder, for candidates of the remote path.
        key: signs the cards; None: they are not signed.

    Raises:
        MissingDataError: no data, or features missing at decision time.
        ExportMismatchError: ONNX and scikit-learn differ.
    """
    code = code_version(Path(__file__).parent)
    tasks = {candidate.task.name: candidate.task for candidate in CANDIDATES}
    _say("reading point-in-time features from the offline store")
    with offline_store(repo) as store:
        frames = {name: training_frame(store, task, repo / "data") for name, task in tasks.items()}
    for name, frame in frames.items():
        _say(f"  {name}: {len(frame)} rows, {len(tasks[name].features)} features")
    for candidate in CANDIDATES:
        started = time.perf_counter()
        fitted = fit(candidate, frames[candidate.task.name])
        seconds = time.perf_counter() - started
        artifact = export(candidate, fitted.model)
        difference = verify(candidate, fitted.model, artifact, fitted.held_out)
        card = make_card(
            candidate,
            fitted,
            difference=difference,
            seconds=seconds,
            now=datetime.now(UTC),
            code=code,
        )
        local = candidate.path == "local"
        folder = write_model(models if local else artifacts, card, artifact, triton=local, key=key)
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in fitted.metrics.items())
        _say(f"trained {candidate.name} v{candidate.version} in {seconds:.1f} s: {metrics}")
        _say(f"  {folder} ({len(artifact):,} bytes)")
    folder = write_summarizer(models, datetime.now(UTC), code, key)
    _say(f"built {folder.name}: word weights for an extractive summarizer")
    folder = write_embedding(models, datetime.now(UTC), code, key)
    _say(f"built {folder.name}: a text embedding by latent semantic analysis")
    for folder in renew(models, key):
        _say(f"wrote the card of {folder.name} anew: it was of an older form")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    parser.add_argument("--repo", type=Path, default=ROOT / "feature_repo", help="the Feast repo")
    parser.add_argument(
        "--models", type=Path, default=ROOT / ".twinpath" / "models", help="Triton model repository"
    )
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=ROOT / ".twinpath" / "artifacts",
        help="models of the stand-in vendor",
    )
    parser.add_argument(
        "--key",
        type=Path,
        default=os.environ.get("TWINPATH_ARTIFACT_KEY") or None,
        help="PEM file with the Ed25519 key that signs the cards (TWINPATH_ARTIFACT_KEY)",
    )
    args = parser.parse_args(argv)
    if not (args.repo / "feature_store.yaml").is_file():
        parser.error(f"--repo {args.repo} holds no feature_store.yaml")
    key = None
    if args.key is not None:
        try:
            key = read_key(args.key)
        except (OSError, ValueError) as error:
            parser.error(f"--key: {error}")
    try:
        train(args.repo, args.models, args.artifacts, key)
    except MissingDataError as error:
        sys.stderr.write(f"no usable data: {error}\n")
        return 3
    except ExportMismatchError as error:
        sys.stderr.write(f"export refused: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
