"""Version hashes, the same wherever and whenever a definition is applied; sources in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGITS = 32


def version_hash(definition: Mapping[str, Any]) -> str:
    """Return 32 hex digits of the SHA-256 of a definition's canonical JSON.

    The definition holds what decides about values: source, schema, keys, ttl, transformation
    code. Descriptions, owners and times of application are not in it.
    """
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def source_text(source: Any) -> str:
    """Return what decides about a source's values: not its description, owner, tags or dates."""
    if source is None:
        return ""
    proto = source.to_proto()
    for part in (proto, proto.batch_source if proto.HasField("batch_source") else None):
        if part is not None:
            for name in ("meta", "description", "owner", "tags"):
                part.ClearField(name)
    text: bytes = proto.SerializeToString(deterministic=True)
    return text.hex()


def source_words(source: Any) -> str:
    """Return a Feast source in words: its kind, its name and where it is."""
    place = getattr(source, "path", "") or getattr(source, "table", "")
    return " ".join(part for part in (type(source).__name__, source.name, str(place)) if part)
