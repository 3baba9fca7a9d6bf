"""The log's signing keys in files: made, read, and rotated.

Beside the signing key lie its public half (`.vkey`), those of all keys before it (`.earlier.vkey`),
and, while a rotation lasts, the key before it (`.previous`). Wherever the signing key is read these
count, so that a rotation needs no setting, and no restart with old settings can refuse the log.
"""

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
        _write(path, pem)
    signer = read_signer(path, name)
    public = _public(path)
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
    """Read all keys of a log, those beside the signing key too; it is made if it is missing."""
    signers = [ensure_signer(signing_key, origin)]
    before = _named_or_beside(also_sign, _previous(signing_key))
    signers.extend([read_signer(path, origin) for path in before])
    verifiers = [signer.verifier for signer in signers]
    for path in _named_or_beside(known_keys, _earlier(signing_key)):
        verifiers.extend(read_verifiers(path))
    return Keyring(tuple(signers), tuple(verifiers))


def rotate(signing_key: Path) -> tuple[VerifierKey, VerifierKey]:
    """Put a new signing key in place; return the public halves of the old one and of the new one.

    From its next start on the service signs with both, until `end_rotation`. A crash in between
    leaves what a start makes whole.

    Raises:
        CheckpointError: there is no such key with a public half that fits.
        OSError: a file can't be read or written.
    """
    (told,) = read_verifiers(_public(signing_key))[:1] or (None,)
    if told is None:
        raise CheckpointError(f"{_public(signing_key)} holds no key")
    old = read_signer(signing_key, told.name).verifier
    if str(old) != str(told):
        raise CheckpointError(f"{_public(signing_key)} is not the public half of {signing_key}")
    earlier = _earlier(signing_key)
    lines = earlier.read_text() if earlier.exists() else ""
    if str(old) not in lines.splitlines():
        _replace(earlier, f"{lines}{old}\n".encode())
    signing_key.replace(_previous(signing_key))
    new = ensure_signer(signing_key, told.name).verifier
    _sync(signing_key.parent)
    return old, new


def end_rotation(signing_key: Path) -> bool:
    """Delete the key before; return whether there was one. Its signatures go on to count."""
    previous = _previous(signing_key)
    there = previous.exists()
    previous.unlink(missing_ok=True)
    _sync(signing_key.parent)
    return there


def _named_or_beside(named: Path | None, beside: Path) -> list[Path]:
    """Return the file that the settings name, if they do, and the one beside, if it is there."""
    return [*([named] if named else []), *([beside] if beside.exists() and beside != named else [])]


def _public(signing_key: Path) -> Path:
    return signing_key.with_name(signing_key.name + ".vkey")


def _previous(signing_key: Path) -> Path:
    return signing_key.with_name(signing_key.name + ".previous")


def _earlier(signing_key: Path) -> Path:
    return signing_key.with_name(signing_key.name + ".earlier.vkey")


def _write(path: Path, data: bytes) -> None:
    """Write a new file for this user's eyes only, durably."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    _write(part, data)
    part.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
