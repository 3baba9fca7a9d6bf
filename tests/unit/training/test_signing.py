"""What the training writes is signed, and `twinpath models sign` signs what it did not write."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from deploy.training.repository import read_key, renew, write_model
from deploy.training.summarizer import write_summarizer
from services.cli.models import app
from services.local.artifacts import Artifacts
from services.local.signature import sign
from tests.support import private_pem


def card(version: str = "1") -> dict[str, Any]:
    """A card with what the repository reads of it."""
    return {
        "name": "m",
        "version": version,
        "task": "t",
        "summary": "a model",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    }


@pytest.fixture
def key() -> Ed25519PrivateKey:
    """The key that signs."""
    return Ed25519PrivateKey.generate()


def test_what_is_written_with_a_key_is_vouched_for(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    """By that key alone; without one nobody does."""
    write_model(tmp_path, card(), b"graph", key=key)
    write_summarizer(tmp_path, datetime(2026, 1, 1, tzinfo=UTC), None, key)
    trusting = Artifacts(tmp_path, [key.public_key()])
    assert not trusting.look("m", "1").fault
    assert not trusting.look("note_summary_small", "1").fault
    other = Artifacts(tmp_path, [Ed25519PrivateKey.generate().public_key()])
    assert "not signed by a key that is trusted" in other.look("m", "1").fault
    write_model(tmp_path, card(), b"graph")
    assert "is not signed" in trusting.look("m", "1").fault


def test_other_versions_of_a_model_stay(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    """Training writes its own version only."""
    for version in ("1", "2", "1"):
        write_model(tmp_path, card(version), b"graph", key=key)
    assert not Artifacts(tmp_path, [key.public_key()]).look("m", "2").fault


def older(folder: Path, key: Ed25519PrivateKey, **more: Any) -> dict[str, Any]:
    """Turn a version's card into one of the form that named one file only; returns the card."""
    written: dict[str, Any] = json.loads((folder / "card.json").read_text())
    (file,) = written.pop("artifact")["files"]
    artifact = {"file": file["path"], "digest": file["digest"], "bytes": file["bytes"]}
    text = json.dumps(written | {"card_format": 1, "artifact": artifact} | more)
    (folder / "card.json").write_text(text)
    (folder / "card.json.sig").write_text(sign(key, text.encode()))
    return written


def test_training_writes_the_older_cards_of_quantized_copies_anew(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    """It does not make the copies itself, and a mesh that stood before must start."""
    folder = write_model(tmp_path, card(), b"graph", key=key) / "1"
    older(folder, key, lineage={"method": "INT8"})
    artifacts = Artifacts(tmp_path, [key.public_key()])
    assert "older form" in artifacts.look("m", "1").fault
    assert [path.name for path in renew(tmp_path, key)] == ["m"]
    assert not artifacts.look("m", "1").fault
    assert json.loads((folder / "card.json").read_text())["lineage"] == {"method": "INT8"}
    assert renew(tmp_path, key) == []


@pytest.mark.parametrize("fault", ["extra", "changed", "stranger", "by hand", "nonsense"])
def test_training_vouches_for_nothing_that_an_older_signature_did_not(
    tmp_path: Path, key: Ed25519PrivateKey, fault: str
) -> None:
    """A file beside, another artifact, another signer, a model that nobody quantized: refused."""
    folder = write_model(tmp_path, card(), b"graph", key=key) / "1"
    signer = Ed25519PrivateKey.generate() if fault == "stranger" else key
    older(folder, signer, **({} if fault == "by hand" else {"lineage": {}}))
    if fault == "extra":
        (folder / "model.py").write_text("import os")
    if fault == "changed":
        (folder / "model.onnx").write_bytes(b"other")
    if fault == "nonsense":
        (folder / "card.json").write_text('{"artifact": 3, "lineage": {}}')
    assert renew(tmp_path, key) == []
    assert Artifacts(tmp_path, [key.public_key()]).look("m", "1").fault


@pytest.fixture
def pem(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    """The key's file."""
    path = tmp_path / "approver.key"
    path.write_text(private_pem(key))
    return path


def run(folder: Path, pem: Path, *more: str) -> Result:
    """Run `twinpath models sign`."""
    return CliRunner().invoke(app, ["sign", str(folder), "--key", str(pem), *more])


def test_the_command_signs(tmp_path: Path, key: Ed25519PrivateKey, pem: Path) -> None:
    """A card that states the files that are there."""
    root = tmp_path / "models"
    folder = write_model(root, card(), b"graph") / "1"
    done = run(folder, pem)
    assert done.exit_code == 0, done.output
    assert not Artifacts(root, [key.public_key()]).look("m", "1").fault


@pytest.mark.parametrize("fault", ["changed", "added", "other name", "no card", "no key", "empty"])
def test_the_command_signs_nothing_that_is_wrong(
    tmp_path: Path, key: Ed25519PrivateKey, pem: Path, fault: str
) -> None:
    """Exit status 1, and no signature."""
    if fault == "no key":
        pem.write_text("nonsense")
    folder = write_model(tmp_path / "models", card(), b"graph") / "1"
    if fault == "changed":
        (folder / "model.onnx").write_bytes(b"other")
    if fault == "added":
        (folder / "model.py").write_bytes(b"import os")
    if fault == "no card":
        (folder / "card.json").unlink()
    if fault == "other name":
        folder = folder.parent.rename(folder.parent.with_name("n")) / "1"
    if fault == "empty":
        (folder.parent.parent / "typo" / "1").mkdir(parents=True)
        folder = folder.parent.parent / "typo" / "1"
    done = run(folder, pem, *(["--licence", "MIT", "--data", "x"] if fault == "empty" else []))
    assert done.exit_code == 1
    assert not (folder / "card.json.sig").exists()


@pytest.mark.parametrize("older_form", [False, True])
def test_who_has_looked_at_changed_files_signs_them_anew(
    tmp_path: Path, key: Ed25519PrivateKey, pem: Path, *, older_form: bool
) -> None:
    """What else the card says stays."""
    root = tmp_path / "models"
    folder = write_model(root, card(), b"graph", key=key) / "1"
    if older_form:
        older(folder, key)
    (folder.parent / "config.pbtxt").write_text('backend: "vllm"')
    assert run(folder, pem).exit_code == 1
    assert run(folder, pem, "--anew").exit_code == 0
    assert not Artifacts(root, [key.public_key()]).look("m", "1").fault
    assert json.loads((folder / "card.json").read_text())["summary"] == "a model"


def test_a_model_without_a_card_gets_one(tmp_path: Path, key: Ed25519PrivateKey, pem: Path) -> None:
    """With what the command was told: licence and data. Without them it asks for them."""
    folder = tmp_path / "models" / "bought" / "3"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    done = run(folder, pem, "--licence", "MIT")
    assert done.exit_code == 1
    assert "--data" in done.output
    done = run(folder, pem, "--licence", "MIT", "--data", "our notes")
    assert done.exit_code == 0, done.output
    assert not Artifacts(tmp_path / "models", [key.public_key()]).look("bought", "3").fault
    written = json.loads((folder / "card.json").read_text())
    assert (written["name"], written["version"], written["licence"]) == ("bought", "3", "MIT")
    assert written["data"] == {"name": "our notes"}


def test_a_key_file_is_read_or_named(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    """PEM, Ed25519, private."""
    pem = tmp_path / "k.pem"
    pem.write_text(private_pem(key))
    assert read_key(pem).public_key() == key.public_key()
    pem.write_text("nonsense")
    with pytest.raises(ValueError, match="key"):
        read_key(pem)


def test_the_summarizers_example_is_a_note(tmp_path: Path) -> None:
    """With it a server warms the model up."""
    folder = write_summarizer(tmp_path, datetime(2026, 1, 1, tzinfo=UTC), None)
    written = json.loads((folder / "1" / "card.json").read_text())
    assert written["example"].keys() == {tensor["name"] for tensor in written["inputs"]}
