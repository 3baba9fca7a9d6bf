"""Fit, export, card and model repository, on frames made here: no Feast, no files of the repo."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from deploy.training import cards, repository
from deploy.training.export import ExportMismatchError, export, verify
from deploy.training.models import CANDIDATES, fit

BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}
NOW = datetime(2025, 3, 1, tzinfo=UTC)


def frame_for(candidate, rows: int = 120) -> pd.DataFrame:
    """Random features with a label that depends on the first of them."""
    rng = np.random.default_rng(1)
    names = list(candidate.task.feature_names)
    frame = pd.DataFrame(rng.normal(5.0, 2.0, (rows, len(names))), columns=names)
    noisy = frame[names[0]] + rng.normal(0, 0.5, rows)
    frame[candidate.task.label] = (
        (noisy > 5.0).astype(int) if candidate.kind == "classifier" else noisy
    )
    return frame


def card_for(candidate, fitted):
    """A card with fixed time and code version."""
    return cards.make_card(candidate, fitted, difference=0.0, seconds=0.1, now=NOW, code="abc")


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_onnx_says_what_scikit_learn_says(name: str) -> None:
    """Each candidate's ONNX agrees with its model, with the contract's names, types and shapes."""
    candidate = BY_NAME[name]
    fitted = fit(candidate, frame_for(candidate))
    artifact = export(candidate, fitted.model)
    assert verify(candidate, fitted.model, artifact, fitted.held_out) < 1e-4
    session = onnxruntime.InferenceSession(artifact)
    (features,) = session.get_inputs()
    assert (features.name, features.type) == ("features", "tensor(float)")
    assert features.shape == ["N", len(candidate.task.features)]
    expected = {
        "classifier": {"probability": "tensor(float)", "label": "tensor(int64)"},
        "regressor": {"progression": "tensor(float)"},
    }[candidate.kind]
    assert {output.name: output.type for output in session.get_outputs()} == expected
    assert all(output.shape == ["N", 1] for output in session.get_outputs())


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_training_is_deterministic(name: str) -> None:
    """The same frame gives the same bytes, and so the same digest."""
    candidate = BY_NAME[name]
    frame = frame_for(candidate)
    first, second = (export(candidate, fit(candidate, frame).model) for _ in range(2))
    assert first == second


def test_a_wrong_export_is_refused() -> None:
    """An artifact of another fit does not pass for this one."""
    candidate = BY_NAME["diabetes_small"]
    frame = frame_for(candidate)
    fitted = fit(candidate, frame)
    other = frame.assign(**{candidate.task.label: frame[candidate.task.label] * 3})
    with pytest.raises(ExportMismatchError, match="diabetes_small"):
        verify(
            candidate, fitted.model, export(candidate, fit(candidate, other).model), fitted.held_out
        )


def test_candidates_of_a_task_share_their_tensors() -> None:
    """Local and remote candidates of one task take and give the same tensors."""
    small, large = BY_NAME["diabetes_small"], BY_NAME["diabetes_large"]
    fits = [fit(candidate, frame_for(candidate)) for candidate in (small, large)]
    one, other = (card_for(c, f) for c, f in zip((small, large), fits, strict=True))
    assert (one["inputs"], one["outputs"], one["features"]) == (
        other["inputs"],
        other["outputs"],
        other["features"],
    )


def test_reference_statistics_count_nulls_apart() -> None:
    """Nulls appear in null_share and do not disturb the other figures; all null is no error."""
    nan = np.nan
    table = np.array([[1, nan], [3, nan], [nan, nan], [nan, nan]], dtype=np.float32)
    statistics = cards.reference_statistics(("a", "b"), table)
    assert statistics["a"]["mean"] == 2.0
    assert statistics["a"]["null_share"] == 0.5
    assert statistics["a"]["quantiles"]["0.5"] == 2.0
    assert statistics["b"] == {"null_share": 1.0}


def test_code_version_is_unknown_outside_git(tmp_path, monkeypatch) -> None:
    """Outside a git tree, and without git, the card says that the code version is unknown."""
    assert cards.code_version(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert cards.code_version(tmp_path) is None


def test_model_folder_is_replaced_and_other_versions_stay(tmp_path) -> None:
    """Writing again replaces the model's folder, leaves the others, and leaves nothing behind."""
    candidate = BY_NAME["diabetes_small"]
    fitted = fit(candidate, frame_for(candidate))
    card = card_for(candidate, fitted)
    root = tmp_path / "models"
    (root / "echo").mkdir(parents=True)
    (root / "diabetes_small" / "7").mkdir(parents=True)
    folder = repository.write_model(root, card, b"bytes")
    assert sorted(path.name for path in root.iterdir()) == ["diabetes_small", "echo"]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "7", "config.pbtxt"]
    written = json.loads((folder / "1" / "card.json").read_text())
    artifact = written.pop("artifact")
    assert written == card | {"card_format": 2}
    assert [file["path"] for file in artifact["files"]] == ["model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert artifact["digest"] == f"sha256:{hashlib.sha256(b'bytes').hexdigest()}"


def test_triton_config_states_the_card_tensors() -> None:
    """The configuration names the tensors without the batch dimension."""
    candidate = BY_NAME["tumour_small"]
    fitted = replace(fit(candidate, frame_for(candidate)), metrics={})
    text = repository.triton_config(card_for(candidate, fitted))
    assert 'backend: "onnxruntime"' in text
    assert "max_batch_size: 64" in text
    assert 'name: "label"\n  data_type: TYPE_INT64\n  dims: [ 1 ]' in text
    assert 'name: "features"\n  data_type: TYPE_FP32\n  dims: [ 30 ]' in text
