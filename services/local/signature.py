"""Signatures of model cards: who approved the artifact that a card names.

`card.json.sig` beside `card.json` holds one line: the key's id, a space, the signature in base64.
The signature is Ed25519 over "twinpath.model-card.v1", one zero byte, and the card's bytes. The
card states the artifact's SHA-256, so a signed card vouches for the artifact too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SUFFIX = ".sig"
_DOMAIN = b"twinpath.model-card.v1\x00"


def key_id(key: Ed25519PublicKey) -> str:
    """Return a key's id: the first 8 bytes of the SHA-256 of the raw key, in hex."""
    return hashlib.sha256(key.public_bytes_raw()).digest()[:8].hex()


def sign(key: Ed25519PrivateKey, card: bytes) -> str:
    """Return the text of `card.json.sig`."""
    signature = base64.b64encode(key.sign(_DOMAIN + card)).decode("ascii")
    return f"{key_id(key.public_key())} {signature}\n"


def verified(keys: Sequence[Ed25519PublicKey], card: bytes, text: str) -> bool:
    """Tell whether one of the keys signed a card."""
    name, _, encoded = text.strip().partition(" ")
    try:
        signature = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
    for key in keys:
        if key_id(key) == name:
            try:
                key.verify(signature, _DOMAIN + card)
            except InvalidSignature:
                return False
            return True
    return False
