"""Builds `text_embedding`: texts to unit vectors, learned from texts that are at hand.

Latent semantic analysis: word weights (TF-IDF) of the descriptions that scikit-learn ships with its
data sets, and their 32 strongest directions (a truncated SVD). It knows the words of some hundred
paragraphs and nothing of language; the card says so, and what it was measured at. It is ONNX from
the text on, so the repository runs on NVIDIA's image as it is.
"""

from __future__ import annotations

import re
import time
import warnings
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from onnx import helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import StringTensorType
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer

from deploy.training.export import OPSET, ExportMismatchError
from deploy.training.repository import write_model

NAME = "text_embedding"
VERSION = "1"
WIDTH = 32
SEED = 0
METRIC = "nearest_is_of_same_document"
EXAMPLE = "Age and blood pressure of patients with diabetes."
_WORD = "[a-zA-Z]+"
_LEAST_WORDS = 8


def texts() -> list[tuple[str, str]]:
    """Return (document, paragraph) for each paragraph of the descriptions with a few words."""
    found = []
    folder = resources.files("sklearn.datasets").joinpath("descr")
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".rst"):
            continue
        for paragraph in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")):
            plain = " ".join(paragraph.split())
            if len(re.findall(r"[A-Za-z]{3,}", plain)) >= _LEAST_WORDS:
                found.append((file.name, plain))
    return found


def split() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (document, paragraph) of those to learn from and of the held-out ones."""
    train, rest = train_test_split(texts(), test_size=0.2, random_state=SEED)
    return train, rest


def nearest_share(
    vectors: NDArray[np.float32],
    known: NDArray[np.float32],
    rest: list[tuple[str, str]],
    train: list[tuple[str, str]],
) -> float:
    """Return for how many held-out paragraphs the nearest known one is of the same document.

    Args:
        vectors: Those of `rest`, [n, 32].
        known: Those of `train`, [m, 32].
        rest: The held-out paragraphs, with their documents.
        train: The known ones.
    """
    nearest = [train[index][0] for index in np.argmax(vectors @ known.T, axis=1)]
    same = np.mean([name == other for name, (other, _) in zip(nearest, rest, strict=True)])
    return round(float(same), 4)


def fit(paragraphs: list[str]) -> Pipeline:
    """Learn words and directions; the same for the same paragraphs."""
    words = TfidfVectorizer(token_pattern=_WORD, min_df=2)
    made = make_pipeline(words, TruncatedSVD(WIDTH, random_state=SEED), Normalizer())
    return made.fit(paragraphs)


def export(model: Pipeline) -> bytes:
    """Return it as ONNX: `text` BYTES [N, 1] to `embedding` FP32 [N, 32]."""
    options = {id(model.steps[0][1]): {"tokenexp": _WORD}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = convert_sklearn(
            model,
            name=f"{NAME}_{VERSION}",
            initial_types=[("text", StringTensorType([None, 1]))],
            options=options,
            target_opset=OPSET,
        )
    for node in made.graph.node:
        if node.op_type == "StringNormalizer":  # the default is a locale that few images have
            node.attribute.append(helper.make_attribute("locale", "C"))
        node.output[:] = ["embedding" if n == made.graph.output[0].name else n for n in node.output]
    del made.graph.output[:]
    shape = [None, WIDTH]
    made.graph.output.append(
        helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, shape)
    )
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def embed(artifact: bytes, paragraphs: list[str]) -> NDArray[np.float32]:
    """Return the vectors of texts, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    given = np.array([[text] for text in paragraphs], dtype=object)
    vectors: NDArray[np.float32] = session.run(["embedding"], {"text": given})[0]
    return vectors


def build() -> tuple[bytes, dict[str, Any]]:
    """Learn, export, compare; return the artifact and what is to be said of its training.

    Raises:
        ExportMismatchError: ONNX and scikit-learn differ.
    """
    started = time.perf_counter()
    train, rest = split()
    model = fit([text for _, text in train])
    seconds = time.perf_counter() - started
    artifact = export(model)
    held_out = embed(artifact, [text for _, text in rest])
    expected = model.transform([text for _, text in rest])
    difference = float(np.max(np.abs(held_out - expected)))
    if not difference <= 1e-4:
        raise ExportMismatchError(f"{NAME}: ONNX differs from scikit-learn by {difference:g}")
    known = embed(artifact, [text for _, text in train])
    documents = [name for name, _ in train]
    chance = max(documents.count(name) for name in set(documents)) / len(documents)
    return artifact, {
        "rows": len(train),
        "held_out_rows": len(rest),
        "seconds": round(seconds, 3),
        "difference": float(f"{difference:.3g}"),
        "metrics": {
            "split": "held out",
            METRIC: nearest_share(held_out, known, rest, train),
            "always_the_commonest_document": round(chance, 4),
        },
    }


def card(made: dict[str, Any], now: datetime, code: str | None) -> dict[str, Any]:
    """Return the model card."""
    return {
        "name": NAME,
        "version": VERSION,
        "task": "none yet; for semantic tasks",
        "path": "local",
        "summary": "text embedding by latent semantic analysis; not a language model",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, WIDTH]}],
        "example": {"text": [[EXAMPLE]]},
        "data": {
            "name": "descriptions of scikit-learn's data sets",
            "source": "sklearn/datasets/descr",
            "licence": "BSD-3-Clause",
        },
        "training": {
            "rows": made["rows"],
            "held_out_rows": made["held_out_rows"],
            "seed": SEED,
            "trained_at": now.isoformat(timespec="seconds"),
            "training_seconds": made["seconds"],
            "energy_joules": None,
            "code": code,
        },
        "metrics": made["metrics"],
        "onnx_difference": made["difference"],
        "limits": "It knows the words of its paragraphs; a text of other words is the zero vector.",
    }


def write_embedding(
    models: Path, now: datetime, code: str | None, key: Ed25519PrivateKey | None = None
) -> Path:
    """Learn, and write `<models>/text_embedding/`, signed with `key`; returns its folder."""
    artifact, made = build()
    return write_model(models, card(made, now, code), artifact, key=key)
