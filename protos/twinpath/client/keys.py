"""Idempotency keys: with one, asking again gives the same decision, and so may be done freely."""

from __future__ import annotations

import hashlib
import uuid


def new_key() -> str:
    """Return a random key: for one question, asked again only by whoever keeps the key."""
    return uuid.uuid4().hex


def key_of(*parts: str | int | bytes) -> str:
    """Return the key of a business fact, made of its parts: "claim", claim_id, "triage".

    Equal parts give an equal key in every process, so that a job that starts over does not
    decide anew. ("ab", "c") and ("a", "bc") differ, as do 1 and "1". The parts can't be read
    from the key.

    Raises:
        TypeError: A part is neither text nor a whole number nor bytes: its form might change.
        ValueError: No part was given.
    """
    if not parts:
        raise ValueError("a key needs a part")
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (str, int, bytes)):
            raise TypeError(f"a key's parts are str, int or bytes, not {type(part).__name__}")
        kind = type(part).__name__[0].encode()
        raw = part if isinstance(part, bytes) else str(part).encode()
        total.update(kind + len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()[:40]
