"""Builds the summarizer of `note_summary`: word weights learned from texts that are at hand.

The texts are the descriptions of scikit-learn's data sets, paragraph by paragraph; what is learned
is the inverse document frequency of their words. That is all the training there is, and the card
says so.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sklearn import datasets

from deploy.training.repository import write_model

SOURCE = Path(__file__).resolve().parents[1] / "triton" / "models" / "note_summary.py"
NAME = "note_summary_small"
VERSION = "1"
_WORD = re.compile(r"[^\W\d_]{3,}")
_MARK = "\nWEIGHTS: dict = "

EXAMPLE = "Slept badly for two weeks. No fever. Blood pressure was 150 over 95."

CONFIG = f"""# Extractive summarizer; written by deploy/training. Tensors as of the vLLM backend.
name: "{NAME}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
  {{ name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [ {{ name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


def texts() -> list[str]:
    """Return the paragraphs to learn from."""
    loaders = (
        datasets.load_breast_cancer,
        datasets.load_diabetes,
        datasets.load_digits,
        datasets.load_iris,
        datasets.load_wine,
        datasets.load_linnerud,
    )
    paragraphs = []
    for load in loaders:
        paragraphs += [p for p in load().DESCR.split("\n\n") if _WORD.search(p)]
    return paragraphs


def learn(paragraphs: list[str]) -> dict[str, Any]:
    """Return the weight of each word, log(N / n), and that of a word never seen, log(N)."""
    seen: dict[str, int] = {}
    for paragraph in paragraphs:
        for word in set(_WORD.findall(paragraph.lower())):
            seen[word] = seen.get(word, 0) + 1
    total = len(paragraphs)
    idf = {word: round(math.log(total / count), 4) for word, count in sorted(seen.items())}
    return {"idf": idf, "unseen": round(math.log(total), 4)}


def artifact(weights: dict[str, Any]) -> bytes:
    """Return the model's one file: the code with the weights in it."""
    code = SOURCE.read_text(encoding="utf-8")
    head = code[: code.index(_MARK)]
    body = json.dumps(weights, sort_keys=True)
    return f"{head}{_MARK}{body}\n".encode()


def card(paragraphs: int, now: datetime, code: str | None) -> dict[str, Any]:
    """Return the model card."""
    return {
        "name": NAME,
        "version": VERSION,
        "task": "note_summary",
        "path": "local",
        "summary": "extractive summarizer by word rarity; not a language model",
        "inputs": [
            {"name": "text_input", "datatype": "BYTES", "shape": [1]},
            {"name": "stream", "datatype": "BOOL", "shape": [1]},
            {"name": "sampling_parameters", "datatype": "BYTES", "shape": [1]},
        ],
        "example": {"text_input": [EXAMPLE], "stream": [True], "sampling_parameters": ["{}"]},
        "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}],
        "data": {
            "name": "descriptions of scikit-learn's data sets",
            "source": "sklearn.datasets, DESCR",
            "licence": "BSD-3-Clause",
            "note": f"{paragraphs} paragraphs; only word rarities are learned",
        },
        "training": {
            "rows": paragraphs,
            "trained_at": now.isoformat(timespec="seconds"),
            "energy_joules": None,
            "code": code,
        },
        "metrics": {},
    }


def write_summarizer(
    models: Path, now: datetime, code: str | None, key: Ed25519PrivateKey | None = None
) -> Path:
    """Learn, and write `<models>/note_summary_small/`, signed with `key`; returns its folder."""
    paragraphs = texts()
    model = artifact(learn(paragraphs))
    about = card(len(paragraphs), now, code)
    return write_model(models, about, model, file="model.py", config=CONFIG, key=key)
