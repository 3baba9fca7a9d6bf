"""Signed checkpoints: C2SP tlog-checkpoint in a C2SP signed-note, signed with Ed25519.

A checkpoint says: this log (origin), at this size, has this root. Keys rotate by signing with the
old and the new one for a while: a note carries any number of signatures, and a verifier ignores
those of keys that it doesn't know.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.audit.merkle import HASH_SIZE

_ED25519 = b"\x01"  # signed-note's algorithm byte
_DASH = "— "
_MAX_SIGNATURES = 100
_MAX_NOTE = 64 * 1024


class CheckpointError(ValueError):
    """A checkpoint is malformed, or no known key signed it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint states. `root` is 32 bytes; `extensions` are opaque lines."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the note's text, with its final newline: the bytes that are signed."""
        lines = [self.origin, str(self.size), base64.b64encode(self.root).decode()]
        return "\n".join([*lines, *self.extensions]) + "\n"


def _check_name(name: str) -> None:
    if not name or "+" in name or any(character.isspace() for character in name):
        raise CheckpointError(f"key name {name!r} must not be empty or have spaces or '+'")


def _key_id(name: str, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with the name and the 4-byte id by which a note refers to it."""

    name: str
    key_id: bytes
    public: Ed25519PublicKey

    @staticmethod
    def parse(vkey: str) -> VerifierKey:
        """Read `<name>+<id in hex>+<base64(0x01 || public key)>`.

        Raises:
            CheckpointError: if it isn't one, or its id doesn't fit the key.
        """
        name, _, rest = vkey.strip().partition("+")
        hexed, _, encoded = rest.partition("+")
        try:
            key = base64.b64decode(encoded, validate=True)
            key_id = bytes.fromhex(hexed)
        except ValueError as error:
            raise CheckpointError(f"not a verifier key: {vkey!r}") from error
        _check_name(name)
        if len(key) != 33 or key[:1] != _ED25519:
            raise CheckpointError(f"verifier key {name!r} is not an Ed25519 key")
        if key_id != _key_id(name, key[1:]):
            raise CheckpointError(f"verifier key {name!r} has an id that is not its own")
        return VerifierKey(name, key_id, Ed25519PublicKey.from_public_bytes(key[1:]))

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        key = base64.b64encode(_ED25519 + self.public.public_bytes_raw()).decode()
        return f"{self.name}+{self.key_id.hex()}+{key}"


@dataclass(frozen=True, slots=True)
class SignerKey:
    """A private key with its name."""

    name: str
    private: Ed25519PrivateKey

    @staticmethod
    def from_seed(name: str, seed: bytes) -> SignerKey:
        """Make a signer from the 32 bytes of an Ed25519 private key."""
        _check_name(name)
        return SignerKey(name, Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def verifier(self) -> VerifierKey:
        """The public half."""
        public = self.private.public_key()
        return VerifierKey(self.name, _key_id(self.name, public.public_bytes_raw()), public)


def sign(checkpoint: Checkpoint, signers: Sequence[SignerKey]) -> str:
    """Return the signed note, one signature line for each signer."""
    if not signers:
        raise CheckpointError("a checkpoint needs at least one signer")
    text = checkpoint.text()
    lines = []
    for signer in signers:
        signature = signer.private.sign(text.encode())
        encoded = base64.b64encode(signer.verifier.key_id + signature).decode()
        lines.append(f"{_DASH}{signer.name} {encoded}\n")
    return text + "\n" + "".join(lines)


def verify(note: str, keys: Iterable[VerifierKey], origin: str | None = None) -> Checkpoint:
    """Check a signed note and return what it states.

    Every signature by a known key must be good, and there must be at least one.

    Args:
        note: the whole note, signatures included.
        keys: the keys to trust; those of earlier rotations belong here too.
        origin: the log that the checkpoint must be of, if given.

    Raises:
        CheckpointError: if the note is malformed, not signed by any of `keys`, signed wrongly, or
            of another log.
    """
    known = {(key.name, key.key_id): key for key in keys}
    text, signatures = _split(note)
    good = 0
    for name, blob in signatures:
        key = known.get((name, blob[:4]))
        if key is None:
            continue
        try:
            key.public.verify(blob[4:], text.encode())
        except InvalidSignature as error:
            raise CheckpointError(f"the signature by {name!r} is false") from error
        good += 1
    if not good:
        raise CheckpointError("no known key signed the checkpoint")
    checkpoint = parse_text(text)
    if origin is not None and checkpoint.origin != origin:
        raise CheckpointError(f"a checkpoint of {checkpoint.origin!r}, not of {origin!r}")
    return checkpoint


def parse_text(text: str) -> Checkpoint:
    """Read a checkpoint's text without regard to signatures."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 3 or not text.endswith("\n") or not all(lines):
        raise CheckpointError("a checkpoint has at least three lines, none of them empty")
    origin, size, root, *extensions = lines
    if not (size.isascii() and size.isdecimal()) or str(int(size)) != size:
        raise CheckpointError(f"{size!r} is not a tree size")
    hashed = _decode(root)
    if len(hashed) != HASH_SIZE:
        raise CheckpointError(f"a root hash has {HASH_SIZE} bytes, not {len(hashed)}")
    return Checkpoint(origin, int(size), hashed, tuple(extensions))


def split_notes(text: str) -> Iterator[str]:
    """Split a file of notes, one after the other with an empty line between, into notes.

    What follows the last complete note (the trace of a crash) is left out; the caller sees it in
    the sum of lengths.
    """
    at = 0
    while at < len(text):
        body = text.find(f"\n\n{_DASH}", at)
        end = text.find("\n\n", body + 2) if body >= 0 else -1
        if end < 0:
            return
        yield text[at : end + 1]
        at = end + 2


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    if len(note) > _MAX_NOTE:
        raise CheckpointError("the note is too large")
    text, separator, tail = note.rpartition("\n\n")
    lines = tail.removesuffix("\n").split("\n")
    if not separator or not tail.endswith("\n") or len(lines) > _MAX_SIGNATURES:
        raise CheckpointError("not a signed note")
    signatures = []
    for line in lines:
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        blob = _decode(encoded)
        if not line.startswith(_DASH) or not name or len(blob) < 5:
            raise CheckpointError(f"not a signature line: {line!r}")
        signatures.append((name, blob))
    return text + "\n", signatures


def _decode(encoded: str) -> bytes:
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CheckpointError(f"not base64: {encoded!r}") from error
    if base64.b64encode(decoded).decode() != encoded:
        raise CheckpointError(f"not canonical base64: {encoded!r}")
    return decoded
