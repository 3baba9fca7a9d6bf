"""Digests of artifacts, and cards that don't fit them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.local import signature
from services.local.artifacts import Artifact, Artifacts
from services.local.manifest import config_digest, write_card

CONFIG = """# written by hand
name: "m"
backend: "onnxruntime"
max_batch_size: 64
"""


def write(
    folder: Path, key: Ed25519PrivateKey | None = None, content: bytes = b"weights", **more: bytes
) -> Path:
    """A model with a configuration, a file or more, and a card; returns the version's folder."""
    version = folder / "m" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (folder / "m" / "config.pbtxt").write_text(CONFIG)
    (version / "model.onnx").write_bytes(content)
    for name, data in more.items():
        (version / name).write_bytes(data)
    write_card(version, {"name": "m", "version": "1"}, key)
    return version


@pytest.fixture
def key() -> Ed25519PrivateKey:
    """The key that signs."""
    return Ed25519PrivateKey.generate()


def test_a_card_that_fits_gives_the_digest(tmp_path: Path) -> None:
    """It is the SHA-256 of the file."""
    write(tmp_path)
    assert Artifacts(tmp_path).look("m", "1") == Artifact(hashlib.sha256(b"weights").digest())


def test_a_card_of_several_files_gives_the_digest_of_their_list(tmp_path: Path) -> None:
    """The list that sha256sum prints; each file counts."""
    version = write(tmp_path, vocabulary=b"words")
    listing = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        for name, data in (("model.onnx", b"weights"), ("vocabulary", b"words"))
    )
    artifacts = Artifacts(tmp_path)
    assert artifacts.look("m", "1") == Artifact(hashlib.sha256(listing.encode()).digest())
    (version / "vocabulary").write_bytes(b"swear")
    fault = artifacts.look("m", "1").fault
    assert fault == "its vocabulary is not the one that its card.json states"


def test_a_file_that_was_changed_is_refused_as_soon_as_it_is_seen(tmp_path: Path) -> None:
    """And accepted again when it is what the card states."""
    version = write(tmp_path)
    artifacts = Artifacts(tmp_path)
    assert not artifacts.look("m", "1").fault
    (version / "model.onnx").write_bytes(b"weightz")
    assert "not the one" in artifacts.look("m", "1").fault
    (version / "model.onnx").write_bytes(b"weights")
    assert not artifacts.look("m", "1").fault


def _file(path: str) -> Callable[[Path], None]:
    def add(version: Path) -> None:
        (version / path).parent.mkdir(exist_ok=True)
        (version / path).write_bytes(b"import os")

    return add


def _config(old: str, new: str) -> Callable[[Path], None]:
    def change(version: Path) -> None:
        file = version.parent / "config.pbtxt"
        file.write_text(CONFIG.replace(old, new))

    return change


def _link(version: Path) -> None:
    (version / "lib").symlink_to(version.parent.parent, target_is_directory=True)


def _gone(version: Path) -> None:
    (version / "model.onnx").unlink()


def _no_config(version: Path) -> None:
    (version.parent / "config.pbtxt").unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_file("model.py"), "does not list: model.py"),
        (_file(".hidden"), "does not list: .hidden"),
        (_file("__pycache__/model.cpython-311.pyc"), "does not list: __pycache__/model.cpython"),
        (_file("../triton_python_backend_stub"), "does not list: ../triton_python_backend_stub"),
        (_file("../configs/m.pbtxt"), "does not list: ../configs/m.pbtxt"),
        (_link, "its files can't be read: Is a directory"),
        (_gone, "not there: model.onnx"),
        (_config('"onnxruntime"', '"python"'), "its config.pbtxt is not the one"),
        (_config("64", "6 4"), "its config.pbtxt is not the one"),
        (_config('"m"', '"m" # "'), ""),
        (_config("# written by hand", "# written by 'somebody else"), ""),
        (_config("\n", "\n\n  "), ""),
        (_no_config, "its config.pbtxt is not the one"),
        (_file("../2/model.py"), ""),
    ],
)
def test_whatever_triton_could_run_is_what_was_signed(
    tmp_path: Path, key: Ed25519PrivateKey, change: Callable[[Path], None], why: str
) -> None:
    """No file more or less, beside the versions neither, and the same configuration.

    The configuration's comments and spaces, and other versions, are nothing that Triton runs.
    """
    version = write(tmp_path, key)
    artifacts = Artifacts(tmp_path, [key.public_key()])
    assert not artifacts.look("m", "1").fault
    change(version)
    fault = artifacts.look("m", "1").fault
    assert (why in fault) if why else fault == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('a: "b c"', 'a: "bc"'),
        ('a: "b # c"', 'a: "b" # c'),
        ('a: "b"', "a: 'b'"),
        ("dims: [ 1, 2 ]", "dims: [ 12 ]"),
        ('a: "\\"" b: 1 # "', 'a: "\\"" b: 1 "'),
    ],
)
def test_configurations_that_say_something_else_differ(one: str, other: str) -> None:
    """What stands in quotes is no comment and no space."""
    assert config_digest(one) != config_digest(other)


@pytest.mark.parametrize(
    "card", ["", "[]", "{}", '{"artifact": 1}', '{"artifact": {"files": [{"path": "model.onnx"}]}}']
)
def test_a_card_that_cant_be_read_refuses_the_model(tmp_path: Path, card: str) -> None:
    """Provenance that is broken is not the same as provenance that is absent."""
    (write(tmp_path) / "card.json").write_text(card)
    assert "can't be read" in Artifacts(tmp_path).look("m", "1").fault


def test_a_card_of_the_older_form_says_what_to_do(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    """It named one file, so its signature says nothing of the others: refused, with the remedy."""
    version = write(tmp_path)
    digest = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    card = json.dumps({"artifact": {"file": "model.onnx", "digest": digest, "bytes": 7}})
    (version / "card.json").write_text(card)
    (version / "card.json.sig").write_text(signature.sign(key, card.encode()))
    fault = Artifacts(tmp_path, [key.public_key()]).look("m", "1").fault
    assert "older form" in fault
    assert "twinpath models sign --anew" in fault


@pytest.mark.parametrize("names", [{"name": "other"}, {"version": "7"}, {"version": 7}])
def test_a_card_vouches_for_no_other_model_or_version(
    tmp_path: Path, names: dict[str, object]
) -> None:
    """A signed folder that was copied is not what was approved."""
    card = write(tmp_path) / "card.json"
    stated = json.loads(card.read_text())
    assert not Artifacts(tmp_path).look("m", "1").fault
    card.write_text(json.dumps({**stated, **names}))
    assert "its card.json is that of" in Artifacts(tmp_path).look("m", "1").fault


@pytest.mark.parametrize("path", ["other.onnx", "../1/model.onnx", "/etc/hostname"])
def test_a_card_may_name_only_its_own_files(tmp_path: Path, path: str) -> None:
    """A path that leads elsewhere is refused."""
    card = write(tmp_path) / "card.json"
    stated = json.loads(card.read_text())
    stated["artifact"]["files"][0]["path"] = path
    card.write_text(json.dumps(stated))
    assert Artifacts(tmp_path).look("m", "1").fault


def test_without_a_card_the_files_are_digested(tmp_path: Path) -> None:
    """One file: its own digest; several: of the list that sha256sum prints; no caches."""
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_bytes(b"a")
    _file("__pycache__/model.pyc")(version)
    one = hashlib.sha256(b"a")
    assert Artifacts(tmp_path).look("m", "1").digest == one.digest()
    (version / "data").mkdir()
    (version / "data" / "x").write_bytes(b"b")
    two = hashlib.sha256(b"b").hexdigest()
    listing = f"{two}  data/x\n{one.hexdigest()}  model.py\n"
    assert Artifacts(tmp_path).look("m", "1").digest == hashlib.sha256(listing.encode()).digest()


def test_python_can_keep_no_caches_beside_code_that_was_signed(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    """It would run them instead; what was there goes, and what takes their place is listed."""
    version = tmp_path / "m" / "1"
    (version / "parts").mkdir(parents=True)
    for folder in (version, version / "parts"):
        (folder / "code.py").write_text("SAID = 1\n")
    _file("__pycache__/code.cpython-311.pyc")(version)
    write_card(version, {"name": "m", "version": "1"}, key)
    environment = {"PYTHONPATH": f"{version}:{version / 'parts'}"}
    subprocess.run([sys.executable, "-c", "import code"], env=environment, check=True)
    artifacts = Artifacts(tmp_path, [key.public_key()])
    assert not artifacts.look("m", "1").fault
    (version / "__pycache__").unlink()
    _file("__pycache__/code.cpython-311.pyc")(version)
    assert "__pycache__" in artifacts.look("m", "1").fault


def test_what_is_not_there_is_not_known(tmp_path: Path) -> None:
    """No repository, or no files of this model in it: an empty digest and no fault."""
    assert Artifacts(None).look("m", "1") == Artifact()
    assert Artifacts(tmp_path).look("m", "1") == Artifact()


def test_a_signed_card_is_accepted_and_any_other_is_refused(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    """No card, no signature, another key's, one over another card, nonsense."""
    other = Ed25519PrivateKey.generate()
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


def test_where_signatures_are_asked_for_a_model_without_files_is_refused(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    """Fails closed: nothing to check is not the same as checked. An ensemble needs a card, too."""
    artifacts = Artifacts(tmp_path, [key.public_key()])
    assert artifacts.look("m", "1").fault
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG)
    assert artifacts.look("m", "1").fault
    write_card(tmp_path / "m" / "1", {"name": "m", "version": "1"}, key)
    assert artifacts.look("m", "1") == Artifact()
