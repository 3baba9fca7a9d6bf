"""The language models that the stand-in vendor plays: small, deterministic, easy to check.

`standin-chat` answers a text with the same words, and an answer that is forced to a JSON schema
with the sum of the numbers in the last message's lines `- name: value`. `standin-embed` gives
each text the counts of its letters.
"""

from __future__ import annotations

import re
import string
from typing import Any

import numpy as np

CHAT, EMBED = "standin-chat", "standin-embed"
VERSIONS = {CHAT: "standin-chat-2026-01-01", EMBED: "standin-embed-1"}
_LINE = re.compile(r"^- [^:\n]+: (?P<value>\S+)$", re.MULTILINE)


def tokens(text: str) -> list[str]:
    """A text as the stand-in counts it: words with the space before them."""
    return re.findall(r"\s*\S+|\s+$", text)


def say(question: str) -> str:
    """The answer to a text."""
    return f"You said: {question}"


def fill(schema: dict[str, Any], question: str) -> dict[str, Any]:
    """An object that keeps to a schema: every number is the sum of those asked about."""
    total = np.float32(0)
    for found in _LINE.finditer(question):
        if found["value"] not in ("True", "False"):
            total += np.float32(float(found["value"]))
    return {name: _value(one, float(total)) for name, one in schema["properties"].items()}


def embed(text: str, dimensions: int) -> list[float]:
    """How often each letter stands in a text, as far as there are dimensions."""
    counts = [float(text.lower().count(letter)) for letter in string.ascii_lowercase]
    return (counts + [0.0] * dimensions)[:dimensions]


def _value(schema: dict[str, Any], total: float) -> Any:
    match schema["type"]:
        case "number":
            return total
        case "integer":
            return int(total)
        case "boolean":
            return total > 0
        case "string":
            return str(total)
        case "array":
            return [_value(schema["items"], total)]
        case _:
            return fill(schema, "")
