"""Digests of artifacts, and cards that don't fit them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from services.local.artifacts import Artifact, Artifacts


def write(folder: Path, content: bytes = b"weights", digest: str | None = None) -> Path:
    """A model with one file and a card; returns the version's folder."""
    version = folder / "m" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.onnx").write_bytes(content)
    stated = digest or f"sha256:{hashlib.sha256(content).hexdigest()}"
    card = {"artifact": {"file": "model.onnx", "digest": stated}}
    (version / "card.json").write_text(json.dumps(card))
    return version


def test_a_card_that_fits_gives_the_digest(tmp_path: Path) -> None:
    """It is the SHA-256 of the file."""
    write(tmp_path)
    assert Artifacts(tmp_path).look("m", "1") == Artifact(hashlib.sha256(b"weights").digest())


def test_a_file_that_was_changed_is_refused_as_soon_as_it_is_seen(tmp_path: Path) -> None:
    """And accepted again when it is what the card states."""
    version = write(tmp_path)
    artifacts = Artifacts(tmp_path)
    assert not artifacts.look("m", "1").fault
    (version / "model.onnx").write_bytes(b"weightz")
    assert "not the one" in artifacts.look("m", "1").fault
    write(tmp_path)
    assert not artifacts.look("m", "1").fault


@pytest.mark.parametrize(
    "card", ["", "[]", "{}", '{"artifact": 1}', '{"artifact": {"file": "model.onnx"}}']
)
def test_a_card_that_cant_be_read_refuses_the_model(tmp_path: Path, card: str) -> None:
    """Provenance that is broken is not the same as provenance that is absent."""
    (write(tmp_path) / "card.json").write_text(card)
    assert Artifacts(tmp_path).look("m", "1").fault


@pytest.mark.parametrize("file", ["other.onnx", "../1/model.onnx", "/etc/hostname"])
def test_a_card_may_name_only_its_own_files(tmp_path: Path, file: str) -> None:
    """A path that leads elsewhere is refused."""
    version = write(tmp_path)
    digest = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    (version / "card.json").write_text(json.dumps({"artifact": {"file": file, "digest": digest}}))
    assert Artifacts(tmp_path).look("m", "1").fault


def test_without_a_card_the_files_are_digested(tmp_path: Path) -> None:
    """One file: its own digest; several: of the list that sha256sum prints."""
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_bytes(b"a")
    one = hashlib.sha256(b"a")
    assert Artifacts(tmp_path).look("m", "1").digest == one.digest()
    (version / "data").mkdir()
    (version / "data" / "x").write_bytes(b"b")
    two = hashlib.sha256(b"b").hexdigest()
    listing = f"{two}  data/x\n{one.hexdigest()}  model.py\n"
    assert Artifacts(tmp_path).look("m", "1").digest == hashlib.sha256(listing.encode()).digest()


def test_what_is_not_there_is_not_known(tmp_path: Path) -> None:
    """No repository, or no files of this model in it: an empty digest and no fault."""
    assert Artifacts(None).look("m", "1") == Artifact()
    assert Artifacts(tmp_path).look("m", "1") == Artifact()
