"""An extractive summarizer, streamed: the text model of the local path on machines without a GPU.

It is no language model: it picks the sentences of a note whose words are rare in ordinary text
(inverse document frequency, learned by deploy/training/summarizer.py and written into WEIGHTS at
the end of this file) and sends them word by word. Its tensors are those of Triton's vLLM backend,
so a GPU deployment puts a real language model in its place and changes nothing else.
"""

import json
import math
import re
import time

import numpy as np
import triton_python_backend_utils as pb_utils

SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")
WORD = re.compile(r"[^\W\d_]{3,}")


def summarize(text: str, weights: dict, limit: int) -> list[str]:
    """Return the words of the best sentences, in the text's order, `limit` words at the most."""
    sentences = [s.strip() for s in SENTENCE.findall(text) if s.strip()]
    counts: dict[str, int] = {}
    for word in WORD.findall(text.lower()):
        counts[word] = counts.get(word, 0) + 1
    unseen = weights["unseen"]

    def score(sentence: str) -> float:
        words = WORD.findall(sentence.lower())
        if not words:
            return 0.0
        total = sum(weights["idf"].get(w, unseen) * math.log1p(counts[w]) for w in words)
        return total / math.sqrt(len(words))

    best = sorted(range(len(sentences)), key=lambda i: (-score(sentences[i]), i))[:2]
    words = " ".join(sentences[i] for i in sorted(best)).split()
    return words[:limit]


class TritonPythonModel:
    """Answers each request with one response a word, or with one response for all."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._answer(request, sender)
            except Exception as error:  # noqa: BLE001 - one request's fault is not the others'
                failed = pb_utils.TritonError(f"summarizer: {type(error).__name__}")
                sender.send(
                    pb_utils.InferenceResponse(error=failed),
                    flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
                )

    def _answer(self, request, sender):
        text = _one(request, "text_input", b"").decode("utf-8", errors="replace")
        streamed = bool(_one(request, "stream", True))
        parameters = json.loads(_one(request, "sampling_parameters", b"{}") or b"{}")
        limit = max(1, min(int(parameters.get("max_tokens", 128)), 1024))
        delay = min(float(parameters.get("delay_ms", 0)) / 1e3, 1.0)  # for tests of slow models
        words = summarize(text, WEIGHTS, limit)
        pieces = [w if i == 0 else " " + w for i, w in enumerate(words)] or [""]
        if not streamed:
            pieces = ["".join(pieces)]
        for piece in pieces:
            if request.is_cancelled():
                break
            if delay:
                time.sleep(delay)
            output = pb_utils.Tensor("text_output", np.array([piece.encode()], dtype=object))
            sender.send(pb_utils.InferenceResponse([output]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _one(request, name, absent):
    """Return the only element of an input tensor, or `absent` where there is none."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return absent if tensor is None else tensor.as_numpy().reshape(-1)[0]


WEIGHTS: dict = {"idf": {}, "unseen": 1.0}
