"""The log's signing keys in files: made, read, and rotated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit.checkpoint import CheckpointError, SignerKey, VerifierKey


@dataclass(frozen=True, slots=True)
class Keyring:
    """Who signs now, and whose earlier signatures still count."""

    signers: tuple[SignerKey, ...]
    verifiers: tuple[VerifierKey, ...]


def read_signer(path: Path, name: str) -> SignerKey:
    """Read an Ed25519 private key from a PEM file.

    Raises:
        CheckpointError: the file holds another kind of key, or none.
        OSError: it can't be read.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise CheckpointError(f"{path} holds no private key in PEM form") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CheckpointError(f"{path} holds no Ed25519 key")
    return SignerKey(name, key)


def ensure_signer(path: Path, name: str) -> SignerKey:
    """Read the key, or make it for this user's eyes only; its public half goes beside it.

    The public half, `<file>.vkey`, is what a verifier needs; give it out before it is needed.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, pem)
            os.fsync(file)
        finally:
            os.close(file)
    signer = read_signer(path, name)
    public = path.with_name(path.name + ".vkey")
    line = f"{signer.verifier}\n"
    if not public.exists() or public.read_text() != line:
        public.write_text(line)
    return signer


def read_verifiers(path: Path) -> list[VerifierKey]:
    """Read verifier keys, one a line; empty lines and lines that start with # don't count.

    Raises:
        CheckpointError: a line is no verifier key; the message names the file and line.
    """
    keys = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            try:
                keys.append(VerifierKey.parse(line))
            except CheckpointError as error:
                raise CheckpointError(f"{path}:{number}: {error}") from error
    return keys


def read_keyring(
    origin: str, signing_key: Path, also_sign: Path | None, known_keys: Path | None
) -> Keyring:
    """Read all keys of a log; the signing key is made if it is missing."""
    signers = [ensure_signer(signing_key, origin)]
    if also_sign is not None:
        signers.append(read_signer(also_sign, origin))
    verifiers = [signer.verifier for signer in signers]
    if known_keys is not None:
        verifiers.extend(read_verifiers(known_keys))
    return Keyring(tuple(signers), tuple(verifiers))
