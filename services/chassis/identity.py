"""Who is calling: tokens, certificates, and the table of who may call what.

A token is a JWT signed with Ed25519: `sub` is the identity ("service:router", or a caller's own
name), `tenant` and `roles` are optional, `aud` is "twinpath", `exp` is required. On loopback the
launcher issues one to each service; end callers bring one from their own issuer. With mTLS a
service's identity is the `spiffe://twinpath/service/<name>` URI of its certificate; a certificate
without one is an end caller's, under its common name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.chassis.call import Identity
from services.chassis.errors import PermissionDeniedError, UnauthenticatedError
from services.chassis.files import FileError, line_of, load_yaml

AUDIENCE = "twinpath"
ANYONE = "anyone"
SERVICE = "service:"
_ROLE = "role:"
_SPIFFE = "spiffe://twinpath/service/"
_CACHE_LIMIT = 4096

log = logging.getLogger(__name__)


def issue_token(
    key: Ed25519PrivateKey,
    subject: str,
    *,
    tenant: str = "",
    roles: Iterable[str] = (),
    lifetime_s: float,
    now: float | None = None,
) -> str:
    """Return a signed identity token. The launcher and tests use it; services never do."""
    start = time.time() if now is None else now
    claims = {
        "sub": subject,
        "aud": AUDIENCE,
        "tenant": tenant,
        "roles": sorted(roles),
        "iat": int(start),
        "exp": int(start + lifetime_s),
    }
    return jwt.encode(claims, key, algorithm="EdDSA")


def read_public_keys(path: Path) -> list[Ed25519PublicKey]:
    """Read the Ed25519 public keys of a PEM file; several may follow each other.

    Raises:
        ValueError: the file can't be read, has no key, a broken one, or one of another kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read: {error}") from None
    end = "-----END PUBLIC KEY-----"
    keys = []
    for block in text.split(end)[:-1]:
        try:
            key = serialization.load_pem_public_key((block + end + "\n").encode())
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"{path}: a key can't be read") from None
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"{path}: a key is not Ed25519")
        keys.append(key)
    if not keys:
        raise ValueError(f"{path}: holds no public key")
    return keys


def _names_itself(subject: str) -> bool:
    """Tell whether a subject is a name of its own, and not one that the table gives a meaning."""
    return bool(subject) and subject != ANYONE and not subject.startswith(_ROLE)


def _identity_of(claims: Mapping[str, Any]) -> Identity | None:
    """Return the identity that verified claims state; None when they are of the wrong kind."""
    subject = claims["sub"]
    tenant = claims.get("tenant", "")
    roles = claims.get("roles", [])
    if not (
        isinstance(subject, str)
        and _names_itself(subject)
        and isinstance(tenant, str)
        and isinstance(roles, list)
        and all(isinstance(role, str) for role in roles)
    ):
        return None
    return Identity(subject, tenant, frozenset(roles))


class TokenVerifier:
    """Verifies tokens; remembers good ones until they expire, because a signature costs 100 us.

    `keys` are the mesh's own and may sign anybody's token; `caller_keys` are those of outside
    issuers, whose word about a service of the mesh is not taken.
    """

    def __init__(
        self,
        keys: Sequence[Ed25519PublicKey],
        caller_keys: Sequence[Ed25519PublicKey] = (),
    ) -> None:
        self._keys = [*((key, True) for key in keys), *((key, False) for key in caller_keys)]
        self._known: dict[str, tuple[float, Identity]] = {}

    def verify(self, token: str) -> Identity:
        """Return the identity of a token.

        Raises:
            UnauthenticatedError: it is expired, malformed, or signed by nobody we trust.
        """
        known = self._known.get(token)
        if known is not None:
            if known[0] > time.time():
                return known[1]
            del self._known[token]
            raise UnauthenticatedError("TOKEN_EXPIRED", "the identity token has expired")
        for key, own in self._keys:
            try:
                claims = jwt.decode(
                    token,
                    key,
                    algorithms=["EdDSA"],
                    audience=AUDIENCE,
                    options={"require": ["exp", "sub", "aud"]},
                )
            except jwt.ExpiredSignatureError:
                raise UnauthenticatedError(
                    "TOKEN_EXPIRED", "the identity token has expired"
                ) from None
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError:
                break
            identity = _identity_of(claims)
            if identity is None or (identity.subject.startswith("service:") and not own):
                break
            if len(self._known) >= _CACHE_LIMIT:
                self._known.clear()
            self._known[token] = (float(claims["exp"]), identity)
            return identity
        raise UnauthenticatedError("TOKEN_INVALID", "the identity token does not verify")


class TokenFile:
    """A token in a file, read again when the file changes, so that it can be rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at: float | None = None
        self._stamp = -1
        self._token = ""

    def token(self) -> str:
        """Return the token. The file is looked at once a second at most.

        While the file can't be read, the last token serves on: rotations replace files.

        Raises:
            UnauthenticatedError: there is no token yet.
        """
        now = time.monotonic()
        if self._read_at is None or now - self._read_at >= 1.0:
            try:
                stamp = self._path.stat().st_mtime_ns
                if stamp != self._stamp:
                    self._token = self._path.read_text(encoding="ascii").strip()
                    self._stamp = stamp
                self._read_at = now
            except (OSError, UnicodeDecodeError) as error:
                if not self._token:
                    raise UnauthenticatedError(
                        "TOKEN_FILE_UNREADABLE", f"{self._path}: {type(error).__name__}"
                    ) from None
                log.warning("token file can't be read", extra={"path": str(self._path)})
        return self._token


class AccessTable:
    """Which identity may call which method. What is not listed is denied.

    Keys are full method names ("/twinpath.audit.v1.Audit/Append") or a service with a star
    ("/grpc.health.v1.Health/*"); values are subjects, "role:<name>", or "anyone", which admits
    callers without any identity.
    """

    def __init__(self, rows: Mapping[str, Iterable[str]]) -> None:
        self.rows = {method: frozenset(names) for method, names in rows.items()}

    def _allowed(self, method: str) -> frozenset[str]:
        exact = self.rows.get(method)
        if exact is not None:
            return exact
        return self.rows.get(method.rpartition("/")[0] + "/*", frozenset())

    def open_to_all(self, method: str) -> bool:
        """Tell whether a method needs no identity."""
        return ANYONE in self._allowed(method)

    def check(self, method: str, identity: Identity) -> None:
        """Raise PermissionDeniedError unless the identity may call the method."""
        if not self._allowed(method) & identity.names:
            raise PermissionDeniedError(
                "METHOD_NOT_ALLOWED",
                f"{identity.subject} may not call {method}",
                metadata={"method": method, "subject": identity.subject},
            )


def read_access_table(path: Path) -> AccessTable:
    """Read the table from its YAML file: methods, each with a list of names.

    Raises:
        FileError: with file, line and what is wrong.
    """
    data = load_yaml(path)
    if not isinstance(data, dict):
        raise FileError(f"{path}:1: must map methods to lists of names")
    for method, names in data.items():
        line = line_of(data, [method])
        if not (isinstance(method, str) and method.startswith("/") and method.count("/") == 2):
            raise FileError(f"{path}:{line}: {method!r} is no method; write /package.Service/Name")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise FileError(f"{path}:{line}: {method} needs a list of names")
    return AccessTable({str(method): [str(n) for n in names] for method, names in data.items()})


def certificate_subject(auth_context: Mapping[str, Iterable[bytes]]) -> str | None:
    """Return the identity of a verified peer certificate; None without one.

    A common name can't make a service, a role or "anyone": only the SPIFFE name makes a service,
    and a certificate has no roles.
    """
    for name in auth_context.get("x509_subject_alternative_name", ()):
        text = name.decode(errors="replace")
        if text.startswith(_SPIFFE) and len(text) > len(_SPIFFE):
            return SERVICE + text.removeprefix(_SPIFFE)
    for name in auth_context.get("x509_common_name", ()):
        text = name.decode(errors="replace")
        return text if _names_itself(text) and not text.startswith(SERVICE) else None
    return None
