"""A Triton model repository on disk: one folder a model, replaced as a whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.local import signature
from services.local.manifest import CARD, CONFIG, SEAL, write_card

MAX_BATCH = 64
MODEL_FILE = "model.onnx"
# No priorities and no queue policy: with either of them Triton 2.51 loses a wake-up now and then,
# and a request waits for half a second. Who goes first is decided before Triton
# (services/local/lanes.py); how batches are put together follows from the tasks' `budget_ms`
# (services/local/batching.py). A repository of one's own may have them: they are passed on.
QUEUE = "dynamic_batching { }\n"


def triton_config(card: dict[str, Any]) -> str:
    """Render `config.pbtxt` for a model whose card states its tensors.

    The instance group names no kind: Triton takes the GPU where there is one. The thread
    parameters are those of NVIDIA's own ONNX Runtime backend, which runs the same repository
    unchanged.
    """

    def tensor(kind: str, spec: dict[str, Any]) -> str:
        dims = ", ".join(str(size) for size in spec["shape"][1:])
        triton = {"BYTES": "STRING"}.get(spec["datatype"], spec["datatype"])
        return (
            f'{kind} {{\n  name: "{spec["name"]}"\n'
            f"  data_type: TYPE_{triton}\n  dims: [ {dims} ]\n}}\n"
        )

    return (
        f"# {card['summary']}; task {card['task']}; written by deploy/training\n"
        f'name: "{card["name"]}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {MAX_BATCH}\n"
        + "".join(tensor("input", spec) for spec in card["inputs"])
        + "".join(tensor("output", spec) for spec in card["outputs"])
        + "instance_group [ { count: 1 } ]\n"
        + QUEUE
        + 'parameters { key: "intra_op_thread_count" value: { string_value: "1" } }\n'
        'parameters { key: "inter_op_thread_count" value: { string_value: "1" } }\n'
    )


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read the private key that signs cards, from an unencrypted PEM file.

    Raises:
        ValueError: It holds no such key.
        OSError: It can't be read.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} holds no unencrypted Ed25519 private key")
    return key


def write_model(
    root: Path,
    card: dict[str, Any],
    artifact: bytes,
    *,
    file: str = MODEL_FILE,
    config: str = "",
    triton: bool = True,
    key: Ed25519PrivateKey | None = None,
) -> Path:
    """Write `<root>/<name>/<version>/` with a file and its card, and `config.pbtxt` for Triton.

    The card gets its list of files here, and with `key` a signature. Other versions of the model
    stay as they are.

    The model's folder is built beside the root and then moved into place, so that a Triton that
    polls `root` sees no half model. Other models under `root` stay as they are.

    Args:
        root: the model repository.
        card: the card, without `artifact`.
        artifact: the file's bytes.
        file: the file's name.
        config: the configuration; empty: as `triton_config` renders it.
        triton: Triton serves it; else there is no configuration.
        key: signs the card; None: it is not signed.

    Returns:
        The model's folder.
    """
    name: str = card["name"]
    target = root / name
    root.mkdir(parents=True, exist_ok=True)
    building = Path(mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        folder = building / name
        version = folder / card["version"]
        version.mkdir(parents=True)
        (version / file).write_bytes(artifact)
        if triton:
            (folder / CONFIG).write_text(config or triton_config(card), encoding="utf-8")
        write_card(version, card, key)
        if target.exists():
            for other in target.iterdir():
                if other.name.isdigit() and other.name != version.name:
                    shutil.copytree(other, folder / other.name)
            target.rename(building / "replaced")
        folder.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def renew(root: Path, key: Ed25519PrivateKey | None) -> list[Path]:
    """Write quantized copies anew whose cards are of the form that named one file only.

    Such a signature covered neither the other files nor the configuration, so it is taken for what
    it says and no more: the named file must be what the card states, signed by this very key, and
    alone; the configuration is rendered from the card. What does not fit is left as it is, and the
    local path says why it refuses it.

    Returns:
        The folders of the models that were written.
    """
    renewed = []
    for path in sorted(root.glob(f"*/*/{CARD}")):
        try:
            found = _copy_of_older_form(path, key)
        except (ValueError, KeyError, TypeError, AttributeError):  # somebody else's
            continue
        if found is not None:
            card, artifact = found
            renewed.append(write_model(root, card, artifact, key=key))
    return renewed


def _copy_of_older_form(
    path: Path, key: Ed25519PrivateKey | None
) -> tuple[dict[str, Any], bytes] | None:
    """Return the card of a copy, without its list of files, and its artifact, if both fit."""
    content = path.read_bytes()
    card = json.loads(content)
    stated = card.pop("artifact")
    others = {entry.name for entry in path.parent.iterdir()} - {CARD, SEAL}
    if "lineage" not in card or "files" in stated or others != {stated["file"]}:
        return None
    seal = path.with_name(SEAL)
    text = seal.read_text(encoding="ascii", errors="replace") if seal.exists() else ""
    if key is not None and not signature.verified([key.public_key()], content, text):
        return None
    artifact = (path.parent / stated["file"]).read_bytes()
    fits = stated["digest"] == f"sha256:{hashlib.sha256(artifact).hexdigest()}"
    return (card, artifact) if fits else None
