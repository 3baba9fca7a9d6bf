"""Settings from environment variables, read once, all mistakes reported together by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """One or more variables are missing or wrong; the text has a line for each."""


class ServiceSettings(BaseSettings):
    """What every service needs. A service's own class sets its prefix and adds its fields.

    Fields with an alias are shared by all services under that very name; the others have the
    service's prefix, such as TWINPATH_ROUTER_LISTEN.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    listen: str = Field(description="host:port to listen on; port 0 takes a free one")
    token_file: Path | None = Field(
        default=None,
        description="file with this service's own identity token; needed without mTLS",
    )
    metrics_listen: str = Field(default="", description="host:port of /metrics; empty: none")
    trusted_keys: Path = Field(
        validation_alias="TWINPATH_TRUSTED_KEYS",
        description="PEM file with the public keys that sign identity tokens",
    )
    access_file: Path = Field(
        validation_alias="TWINPATH_ACCESS_FILE",
        description="YAML table of who may call which method",
    )
    tls_cert: Path | None = Field(
        default=None, description="certificate chain; switches mTLS on together with key and CA"
    )
    tls_key: Path | None = Field(default=None, description="private key")
    tls_ca: Path | None = Field(
        default=None, validation_alias="TWINPATH_TLS_CA", description="CA of the mesh"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", validation_alias="TWINPATH_LOG_LEVEL", description="least level logged"
    )
    max_message_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        validation_alias="TWINPATH_MAX_MESSAGE_BYTES",
        description="largest gRPC message in or out",
    )
    default_deadline_s: float = Field(
        default=10.0,
        gt=0,
        validation_alias="TWINPATH_DEFAULT_DEADLINE_S",
        description="deadline in seconds for calls that come without one",
    )
    drain_s: float = Field(
        default=5.0,
        ge=0,
        validation_alias="TWINPATH_DRAIN_S",
        description="seconds that calls in flight get at shutdown",
    )
    settle_s: float = Field(
        default=0.0,
        ge=0,
        validation_alias="TWINPATH_SETTLE_S",
        description="seconds between NOT_SERVING and the stop, for load balancers to notice",
    )
    ping_interval_s: float = Field(
        default=1.0,
        gt=0,
        validation_alias="TWINPATH_PING_INTERVAL_S",
        description="seconds between pings of the dependencies",
    )


S = TypeVar("S", bound=BaseSettings)


def variable(kind: type[BaseSettings], field: str) -> str:
    """Return the environment variable of a field."""
    info = kind.model_fields[field]
    if isinstance(info.validation_alias, str):
        return info.validation_alias
    return f"{kind.model_config.get('env_prefix', '')}{field}".upper()


def load(kind: type[S]) -> S:
    """Read the settings from the environment.

    Raises:
        SettingsError: with one line for each variable that is missing or wrong.
    """
    try:
        return kind()
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            place = str(fault["loc"][0]) if fault["loc"] else ""
            field = next((n for n in kind.model_fields if place in (n, variable(kind, n))), None)
            name = variable(kind, field) if field else place
            help_text = (kind.model_fields[field].description or "") if field else ""
            what = "is missing" if fault["type"] == "missing" else fault["msg"]
            lines.append(f"{name}: {what} ({help_text})" if help_text else f"{name}: {what}")
        raise SettingsError("\n".join(lines)) from None


def load_or_exit(kind: type[S]) -> S:
    """Read the settings; on mistakes print them all and exit with 2."""
    try:
        return load(kind)
    except SettingsError as error:
        sys.stderr.write(f"settings are wrong:\n{error}\n")
        raise SystemExit(2) from None
