"""A Triton model repository on disk: one folder a model, replaced as a whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.local import signature

MAX_BATCH = 64
MODEL_FILE = "model.onnx"
CARD_FILE = "card.json"
CONFIG_FILE = "config.pbtxt"


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
        "dynamic_batching { }\n"
        'parameters { key: "intra_op_thread_count" value: { string_value: "1" } }\n'
        'parameters { key: "inter_op_thread_count" value: { string_value: "1" } }\n'
    )


def write_card(folder: Path, card: dict[str, Any], key: Ed25519PrivateKey | None) -> None:
    """Write a version's `card.json`, and with a key its signature `card.json.sig`."""
    text = json.dumps(card, indent=2, allow_nan=False) + "\n"
    path = folder / CARD_FILE
    path.write_text(text, encoding="utf-8")
    seal = path.with_name(f"{CARD_FILE}{signature.SUFFIX}")
    if key is None:
        seal.unlink(missing_ok=True)
    else:
        seal.write_text(signature.sign(key, text.encode()), encoding="ascii")


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
    triton: bool = True,
    key: Ed25519PrivateKey | None = None,
) -> Path:
    """Write `<root>/<name>/<version>/{model.onnx,card.json}`, and `config.pbtxt` for Triton.

    With `key` the card is signed. Other versions of the model stay as they are.

    The model's folder is built beside the root and then moved into place, so that a Triton that
    polls `root` sees no half model. Other models under `root` stay as they are.

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
        (version / MODEL_FILE).write_bytes(artifact)
        write_card(version, card, key)
        if triton:
            (folder / CONFIG_FILE).write_text(triton_config(card), encoding="utf-8")
        if target.exists():
            for other in target.iterdir():
                if other.name.isdigit() and other.name != version.name:
                    shutil.copytree(other, folder / other.name)
            target.rename(building / "replaced")
        folder.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target
