"""Keys and tokens of a mesh on one machine. Secrets lie in files that only their owner can read.

Keys are made once and kept, so that the audit log of yesterday still verifies and its payloads
still open; tokens are issued at every start. A real installation brings its own issuer and keys.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from services.chassis.identity import issue_token

SERVICES = ("router", "features", "local", "remote", "audit")
# Subjects and roles of end callers; the access table speaks of the roles.
ROLES: Mapping[str, str] = MappingProxyType(
    {
        "caller": "laptop-caller",
        "operator": "laptop-operator",
        "auditor": "laptop-auditor",
        "payload_reader": "laptop-payload-reader",
        "privacy_officer": "laptop-privacy-officer",
        "feature_writer": "laptop-feature-writer",
    }
)
LIFETIME_S = 7 * 24 * 3600.0
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keys:
    """Paths of keys and tokens; see `make_keys`.

    Attributes:
        identity: PEM, Ed25519: signs identity tokens.
        identity_public: PEM: what every service trusts.
        grant: PEM, Ed25519: the router signs grants with it.
        grant_public: PEM: the remote service verifies them with it.
        pseudonym: 64 hex digits: the router makes pseudonyms of entity keys by it.
        cache: 64 hex digits: the router encrypts kept answers with it.
        audit: The audit service's own keys; it says what lies in there.
        standin_token: The stand-in vendor's bearer token.
        tokens: Token files, by "service:<name>" and by role.
    """

    identity: Path
    identity_public: Path
    grant: Path
    grant_public: Path
    pseudonym: Path
    cache: Path
    audit: Path
    standin_token: Path
    tokens: Mapping[str, Path]


def make_keys(folder: Path) -> Keys:
    """Make what is missing in `folder`, and issue new tokens."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity, identity_public = _key_pair(folder, "identity")
    _, grant_public = _key_pair(folder, "grant")
    standin = _secret(folder / "standin.token", secrets.token_urlsafe)
    audit = folder / "audit"
    audit.mkdir(exist_ok=True, mode=0o700)
    tokens = folder / "tokens"
    tokens.mkdir(exist_ok=True, mode=0o700)
    files = {}
    for name in SERVICES:
        files[f"service:{name}"] = tokens / f"service-{name}"
        token = issue_token(identity, f"service:{name}", lifetime_s=LIFETIME_S)
        write_secret(files[f"service:{name}"], token)
    for role, subject in ROLES.items():
        files[role] = tokens / f"role-{role}"
        token = issue_token(identity, subject, roles=[role], lifetime_s=LIFETIME_S)
        write_secret(files[role], token)
    return Keys(
        identity=folder / "identity.key",
        identity_public=identity_public,
        grant=folder / "grant.key",
        grant_public=grant_public,
        pseudonym=_secret(folder / "pseudonym.key", secrets.token_hex),
        cache=_secret(folder / "cache.key", secrets.token_hex),
        audit=audit,
        standin_token=standin,
        tokens=MappingProxyType(files),
    )


def _secret(path: Path, make: Callable[[int], str]) -> Path:
    """Make a secret where there is none yet."""
    if not path.exists():
        write_secret(path, make(_SECRET_BYTES))
    return path


def make_artifact_key(folder: Path, given: Path | None = None) -> tuple[Path, Path]:
    """Make the key that signs model cards, if it is missing; returns (private, public) files.

    Args:
        folder: Where it lies: beside the models, which several meshes may share.
        given: A private key that exists already; only its public half is written to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if given is None:
        return folder / "artifacts.key", _key_pair(folder, "artifacts")[1]
    key = load_pem_private_key(given.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"TWINPATH_ARTIFACT_KEY: {given} is not an Ed25519 key")
    public = folder / "artifacts.pub.pem"
    public.write_bytes(_public_pem(key))
    return given, public


def _key_pair(folder: Path, name: str) -> tuple[Ed25519PrivateKey, Path]:
    path, public = folder / f"{name}.key", folder / f"{name}.pub.pem"
    if path.exists():
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path} is not an Ed25519 key; remove {folder} to make new keys")
    else:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_secret(path, pem.decode())
    public.write_bytes(_public_pem(key))
    return key, public


def _public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, as a whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    part.replace(path)
