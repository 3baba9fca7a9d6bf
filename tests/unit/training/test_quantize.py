"""INT8 copies: the same answers, and the truth about whether they pay."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from deploy.training import lowering
from deploy.training import quantize as module
from deploy.training.embedding import METRIC, NAME, write_embedding
from deploy.training.export import export
from deploy.training.lowering import lower
from deploy.training.models import Split, fit
from deploy.training.quantize import Measured, NothingToQuantizeError, quantize, verdict
from deploy.training.repository import write_model
from deploy.training.subjects import OnnxModel, tabular
from services.cli.models import app
from services.cli.models_quantize import conclusion, table
from services.local.artifacts import Artifacts
from tests.support import ROOT, private_pem
from tests.unit.training.test_export import BY_NAME, card_for, frame_for

GENERATOR = np.random.default_rng(3)


def wide() -> bytes:
    """A network of two layers whose weights are most of it: 1 MB of FP32."""
    sizes = (16, 512, 512, 1)
    nodes, weights, last = [], [], "features"
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        values = GENERATOR.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        out = "progression" if layer == len(sizes) - 2 else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [out], f"m{layer}"))
        last = out
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("progression", TensorProto.FLOAT, ["N", 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("name", ["diabetes_small", "tumour_small"])
def test_a_lowered_model_says_the_same(name: str) -> None:
    """Without any operator of ONNX-ML."""
    candidate = BY_NAME[name]
    fitted = fit(candidate, frame_for(candidate))
    original = export(candidate, fitted.model)
    lowered = lower(original)
    assert {node.domain for node in onnx.load_from_string(lowered).graph.node} == {""}
    before, after = OnnxModel(original), OnnxModel(lowered)
    for output, values in before.run(fitted.held_out).items():
        assert np.allclose(after.run(fitted.held_out)[output], values, rtol=1e-4, atol=1e-5)


def test_the_command_lowers_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has nothing to replace, or would say something else, is not written."""
    candidate = BY_NAME["tumour_small"]
    fitted = fit(candidate, frame_for(candidate))
    source, target = tmp_path / "model.onnx", tmp_path / "lowered.onnx"
    source.write_bytes(export(candidate, fitted.model))
    assert lowering.main([str(source), str(target)]) == 1  # nothing to compare with
    (tmp_path / "card.json").write_text(json.dumps(card_for(candidate, fitted)))
    monkeypatch.setattr(lowering, "difference", lambda *_: 1.0)
    assert lowering.main([str(source), str(target)]) == 1
    monkeypatch.undo()
    assert not target.exists()
    said = OnnxModel(source.read_bytes()).run(lowering.rows_like(source))["probability"]
    assert said.std() > 0.1  # not all of them at the ends, where everything is the same
    assert lowering.main([str(source), str(target)]) == 0
    assert {node.domain for node in onnx.load(target).graph.node} == {""}
    assert lowering.main([str(target), str(tmp_path / "again.onnx")]) == 1
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_a_model_of_many_weights_shrinks_and_keeps_its_answers(method: Any) -> None:
    """To about a quarter."""
    rows = GENERATOR.normal(0, 1, (256, 16)).astype(np.float32)
    original = wide()
    copy = quantize(original, method, rows)
    assert len(copy) < 0.3 * len(original)
    meant, said = OnnxModel(original).predict(rows), OnnxModel(copy).predict(rows)
    assert np.corrcoef(meant, said)[0, 1] > 0.99


def test_trees_have_nothing_to_quantize() -> None:
    """That is said; no copy is made."""
    candidate = BY_NAME["diabetes_large"]
    fitted = fit(candidate, frame_for(candidate))
    with pytest.raises(NothingToQuantizeError):
        quantize(export(candidate, fitted.model), "dynamic", fitted.train)


NO_ROWS = np.zeros((0, 13), np.float32)
SUBJECT = tabular(BY_NAME["diabetes_small"], Split(NO_ROWS, NO_ROWS, NO_ROWS, NO_ROWS))
ORIGINAL = Measured(1000, 10, 100, 1.0, {"rmse": 50.0})


@pytest.mark.parametrize(
    ("copy", "why"),
    [
        (replace(ORIGINAL, bytes=300), ""),
        (replace(ORIGINAL, batch_us=80), ""),
        (ORIGINAL, "neither"),
        (replace(ORIGINAL, bytes=300, one_us=12), "it is 20% slower at one row"),
        (replace(ORIGINAL, bytes=2000, batch_us=80), "it is 100% larger"),
        (replace(ORIGINAL, bytes=300, metrics={"rmse": 51.0}), "rmse goes from 50 to 51"),
    ],
)
def test_what_does_not_pay_is_said(copy: Measured, why: str) -> None:
    """Better in something and worse in nothing: that pays."""
    found = verdict(SUBJECT, ORIGINAL, copy)
    assert (why in found) if why else not found


def test_a_copy_is_written_signed_with_its_lineage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model of its own; a linear model of 13 weights is written only if one insists."""
    candidate = BY_NAME["diabetes_small"]
    frame = frame_for(candidate)
    fitted = fit(candidate, frame)
    original = export(candidate, fitted.model)
    models = tmp_path / "models"
    parent: dict[str, Any] = card_for(candidate, fitted)
    write_model(models, parent, original)
    key = Ed25519PrivateKey.generate()
    (tmp_path / "k.pem").write_text(private_pem(key))

    class Store:
        def __enter__(self) -> None:
            """Open nothing."""

        def __exit__(self, *_: object) -> None:
            """Close nothing."""

    monkeypatch.setattr(module, "offline_store", lambda _: Store())
    monkeypatch.setattr(module, "training_frame", lambda *_: frame)
    args = argparse.Namespace(
        model="diabetes_small",
        version="",
        method="both",
        dry_run=False,
        anyway=False,
        repo=tmp_path,
        models=models,
        key=tmp_path / "k.pem",
    )
    report, code = module.run(args)
    assert (code, report["pays"], report["written"]) == (1, False, "")
    assert "does not pay" in conclusion(report)
    assert not (models / "diabetes_small_int8").exists()
    args.anyway = True
    report, code = module.run(args)
    assert code == 0
    assert table(report).row_count == 4 + len(report["original"]["metrics"])
    assert "twinpath models load diabetes_small_int8 1" in conclusion(report)
    assert not Artifacts(models, [key.public_key()]).look("diabetes_small_int8", "1").fault
    card = json.loads((models / "diabetes_small_int8" / "1" / "card.json").read_text())
    digest = f"sha256:{hashlib.sha256(original).hexdigest()}"
    assert card["lineage"]["made_from"]["digest"] == digest
    assert "onnx_difference" not in card  # that of the parent's file
    assert "INT8" in card["summary"]


def test_the_embedding_is_quantized_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of its own; any version, measured by its own metric, registered with nobody."""
    write_embedding(tmp_path / "models", datetime(2026, 1, 1, tzinfo=UTC), None)
    (tmp_path / "models" / NAME / "1").rename(tmp_path / "models" / NAME / "4")
    catalog = shutil.copytree(ROOT / "deploy" / "catalog", tmp_path / "catalog")
    monkeypatch.setenv("TWINPATH_HOME", str(tmp_path))
    monkeypatch.setenv("TWINPATH_CATALOG", str(catalog))
    monkeypatch.delenv("TWINPATH_ARTIFACT_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["quantize", NAME, "--version", "4", "--method", "dynamic"]
    done = CliRunner().invoke(app, [*arguments, "--anyway", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["version"], report["candidate_of"]) == ("4", [])
    copy = report["copies"]["dynamic"]
    assert copy["bytes"] < report["original"]["bytes"]
    assert copy["agreement"] > 0.9
    assert METRIC in copy["metrics"]
    assert not Artifacts(tmp_path / "models").look(f"{NAME}_int8", "4").fault
    done = CliRunner().invoke(app, ["quantize", NAME, "--version", "7", "--dry-run"])
    assert done.exit_code == 3
    assert "No such file" in done.output
