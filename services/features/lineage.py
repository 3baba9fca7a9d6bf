"""Version hashes: the same definition gives the same hash wherever and whenever it is applied."""

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
