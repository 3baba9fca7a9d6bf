"""The connection: where, as whom, how protected, in which trace."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

TokenSource = str | Path | Callable[[], str]
AsyncTokenSource = TokenSource | Callable[[], Awaitable[str]]

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tls:
    """How the connection is protected. `Tls()` trusts the system's roots.

    Attributes:
        ca: PEM file with the roots to trust.
        certificate: PEM file with our own chain, for mTLS.
        key: PEM file with its private key.
        server_name: The name that the server's certificate has, if the target's is another.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) is not (self.key is None):
            raise ValueError("mTLS needs the certificate and its key")

    def credentials(self) -> grpc.ChannelCredentials:
        """Return gRPC's form. Raises OSError when a file can't be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )


def options(tls: Tls | None, extra: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the options of a channel; the caller's own come last and win."""
    found: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        # What may be repeated is decided in retry.py, not by a name server.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.primary_user_agent", "twinpath-client"),
    ]
    if tls is not None and tls.server_name:
        found.append(("grpc.ssl_target_name_override", tls.server_name))
    return [*found, *extra]


def check_plain(target: str, tls: Tls | None, *, token: bool, plaintext_token: bool) -> None:
    """Refuse to send a token over a network in plain text.

    Raises:
        ValueError: There is a token and no TLS, and the target is not this machine.
    """
    if token and tls is None and not plaintext_token and not _is_loopback(target):
        raise ValueError(
            f"a token would travel to {target} in plain text: pass tls=Tls(...), or "
            "plaintext_token=True where something else protects the connection"
        )


def _is_loopback(target: str) -> bool:
    if target.startswith("unix:"):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_of(source: AsyncTokenSource | None) -> str | Awaitable[str]:
    """Return the token now: files and functions are asked at every call, so that it can change.

    Raises:
        OSError: The file can't be read.
        ValueError: There is no token in it.
    """
    if source is None:
        return ""
    if isinstance(source, Path):
        found = source.read_text(encoding="ascii").strip()
        if not found:
            raise ValueError(f"{source} holds no token")
        return found
    return source if isinstance(source, str) else source()


def metadata(token: str, traceparent: str, tracestate: str) -> list[tuple[str, str]]:
    """Return what goes along with a call: the token and the trace.

    Without a traceparent it is the current one of OpenTelemetry, in a program that uses that.
    """
    found: dict[str, str] = {}
    if traceparent:
        found["traceparent"] = traceparent
        if tracestate:
            found["tracestate"] = tracestate
    elif "opentelemetry" in sys.modules:
        from opentelemetry import propagate  # noqa: PLC0415 - only in programs that have it

        carried: dict[str, str] = {}
        propagate.inject(carried)
        # Not the baggage: it is for the caller's own services.
        found = {k: carried[k] for k in ("traceparent", "tracestate") if k in carried}
    if token:
        found["authorization"] = f"Bearer {token}"
    return list(found.items())
