"""Digests of artifacts, and cards that don't fit them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.local import signature
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


@pytest.mark.parametrize("names", [{"name": "other"}, {"version": "7"}, {"version": 7}])
def test_a_card_vouches_for_no_other_model_or_version(
    tmp_path: Path, names: dict[str, object]
) -> None:
    """A signed folder that was copied is not what was approved."""
    card = write(tmp_path) / "card.json"
    stated = json.loads(card.read_text())
    card.write_text(json.dumps({**stated, "name": "m", "version": "1"}))
    assert not Artifacts(tmp_path).look("m", "1").fault
    card.write_text(json.dumps({**stated, "name": "m", "version": "1", **names}))
    assert "its card.json is that of" in Artifacts(tmp_path).look("m", "1").fault


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


def test_a_signed_card_is_accepted_and_any_other_is_refused(tmp_path: Path) -> None:
    """No card, no signature, another key's, one over another card, nonsense."""
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    version = write(tmp_path)
    card, seal = version / "card.json", version / "card.json.sig"
    artifacts = Artifacts(tmp_path, [key.public_key()])

    def fault() -> str:
        return artifacts.look("m", "1").fault

    assert fault() == "its card.json is not signed"
    seal.write_text(signature.sign(key, card.read_bytes()))
    assert fault() == ""
    assert artifacts.look("m", "1").digest == hashlib.sha256(b"weights").digest()
    for text in (
        signature.sign(other, card.read_bytes()),
        signature.sign(key, card.read_bytes() + b" "),
        signature.sign(key, card.read_bytes()).replace(" ", " !"),
        signature.key_id(key.public_key()),
        "",
    ):
        seal.write_text(text)
        assert "not signed by a key that is trusted" in fault()
    card.unlink()
    assert "nobody vouches" in fault()


def test_a_signature_does_not_save_a_changed_artifact(tmp_path: Path) -> None:
    """The card is signed, and its artifact is another one."""
    key = Ed25519PrivateKey.generate()
    version = write(tmp_path)
    seal = signature.sign(key, (version / "card.json").read_bytes())
    (version / "card.json.sig").write_text(seal)
    (version / "model.onnx").write_bytes(b"weightz")
    assert "not the one" in Artifacts(tmp_path, [key.public_key()]).look("m", "1").fault


def test_where_signatures_are_asked_for_a_model_without_files_is_refused(tmp_path: Path) -> None:
    """Fails closed: nothing to check is not the same as checked."""
    key = Ed25519PrivateKey.generate()
    assert Artifacts(tmp_path, [key.public_key()]).look("m", "1").fault
