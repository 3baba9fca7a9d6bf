"""What tests need to run services: keys, tokens, settings, grants, ports, and a service's start.

Nothing here fakes a part of the product; fakes of the contracts stand in tests/fakes.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.chassis import run
from services.chassis.errors import ServiceError, from_rpc_error
from services.chassis.identity import issue_token
from services.chassis.settings import ServiceSettings
from twinpath.inference.v1 import grant_pb2

ROOT = Path(__file__).resolve().parents[1]
ACCESS_FILE = ROOT / "deploy" / "catalog" / "access.yaml"
GRANT_DOMAIN = b"twinpath.grant.v1\x00"

S = TypeVar("S", bound=ServiceSettings)


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def public_pem(*keys: Ed25519PrivateKey) -> str:
    """Return the public halves as PEM, one after the other."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return "".join(
        key.public_key().public_bytes(serialization.Encoding.PEM, form).decode() for key in keys
    )


def private_pem(key: Ed25519PrivateKey) -> str:
    """Return a private key as unencrypted PKCS #8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@dataclass(frozen=True)
class MeshKeys:
    """The keys of a mesh of its own, in files below `folder`.

    `issuer` signs identity tokens; `grants` is the router's key for grants.
    """

    folder: Path
    issuer: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    grants: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def trusted_keys(self) -> Path:
        """The PEM file behind TWINPATH_TRUSTED_KEYS."""
        return self.folder / "trusted.pem"

    @property
    def grant_keys(self) -> Path:
        """The PEM file behind TWINPATH_GRANT_KEYS: public."""
        return self.folder / "grants.pem"

    @property
    def router_grant_key(self) -> Path:
        """The PEM file behind TWINPATH_ROUTER_GRANT_KEY: private."""
        return self.folder / "router-grant.pem"

    def token(
        self,
        subject: str,
        *,
        roles: Iterable[str] = (),
        tenant: str = "",
        lifetime_s: float = 600.0,
    ) -> str:
        """Return a token that a service of this mesh accepts."""
        return issue_token(self.issuer, subject, tenant=tenant, roles=roles, lifetime_s=lifetime_s)

    def token_file(self, subject: str, **claims: Any) -> Path:
        """Return a file that holds a token of that subject."""
        path = self.folder / f"{subject.replace(':', '-')}.token"
        path.write_text(self.token(subject, **claims) + "\n")
        return path

    def environment(self) -> dict[str, str]:
        """Return the variables that all services share."""
        return {
            "TWINPATH_TRUSTED_KEYS": str(self.trusted_keys),
            "TWINPATH_ACCESS_FILE": str(ACCESS_FILE),
            "TWINPATH_GRANT_KEYS": str(self.grant_keys),
            "TWINPATH_ROUTER_GRANT_KEY": str(self.router_grant_key),
        }


def mesh_keys(folder: Path) -> MeshKeys:
    """Make the keys of a mesh, and their files, in a folder of the test's own."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = MeshKeys(folder)
    keys.trusted_keys.write_text(public_pem(keys.issuer))
    keys.grant_keys.write_text(public_pem(keys.grants))
    keys.router_grant_key.write_text(private_pem(keys.grants))
    keys.router_grant_key.chmod(0o600)
    return keys


def settings_for(kind: type[S], keys: MeshKeys, *, service: str = "", **fields: Any) -> S:
    """Return settings of a service that listens on a free port and stops quickly.

    `service` names whose token it sends on ("router"); `fields` are the class's own fields, and
    win over what is set here.
    """
    given: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "trusted_keys": keys.trusted_keys,
        "access_file": ACCESS_FILE,
        "drain_s": 1.0,
        "ping_interval_s": 0.05,
    }
    if service:
        given["token_file"] = keys.token_file(f"service:{service}")
    return kind(**{**given, **fields})


@contextlib.asynccontextmanager
async def start_service(settings: S, build: run.Build[S]) -> AsyncIterator[run.Running]:
    """Start a service in this process, wait for its first pings, and stop it at the end."""
    async with run.started(settings, build) as running:
        await running.health.check()
        yield running


@contextlib.asynccontextmanager
async def client(
    address: str, token: str = "", *, options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """Give a bare channel, as a caller from outside has it; `token` goes with every call."""
    interceptors = [_SendToken(token)] if token else []
    async with grpc.aio.insecure_channel(
        address,
        options=[("grpc.use_local_subchannel_pool", 1), *options],
        interceptors=[*interceptors, *(_SendTokenOnStream(token),) * bool(token)],
    ) as channel:
        yield channel


def _with_token(details: grpc.aio.ClientCallDetails, token: str) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    metadata.add("authorization", f"Bearer {token}")
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=details.timeout,
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )


class _SendToken(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_with_token(client_call_details, self._token), request)


class _SendTokenOnStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_with_token(client_call_details, self._token), request)


async def refusal(call: Any) -> ServiceError:
    """Await a call that must fail, and return the error it carried, details and all."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call was answered, but it must be refused")


def key_id(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """Return the id of a grant key, as grant.proto defines it."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return hashlib.sha256(public.public_bytes_raw()).digest()[:8].hex()


def sign_grant(
    key: Ed25519PrivateKey, claims: grant_pb2.GrantClaims | Mapping[str, Any]
) -> grant_pb2.Grant:
    """Sign claims as grant.proto says; without an expiry they hold for a minute.

    Written from the comments of the contract alone, so that it checks the product's own signer.
    """
    if not isinstance(claims, grant_pb2.GrantClaims):
        claims = grant_pb2.GrantClaims(**claims)
    if not claims.expire_time_unix_us:
        claims.expire_time_unix_us = time.time_ns() // 1000 + 60_000_000
    data = claims.SerializeToString(deterministic=True)
    return grant_pb2.Grant(claims=data, signature=key.sign(GRANT_DOMAIN + data), key_id=key_id(key))
