"""Settings from environment variables, read once, all mistakes reported together by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableError


class SettingsError(Exception):
    """One or more variables are missing or wrong; the text has a line for each."""


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("must be host:port")
    return text


Address = Annotated[str, AfterValidator(_address)]


class ServiceSettings(BaseSettings):
    """What every service needs. A service's own class sets its prefix and adds its fields.

    Fields with an alias are shared by all services under that very name; the others have the
    service's prefix, such as TWINPATH_ROUTER_LISTEN.
    """

    # A variable that is set but empty counts as missing: an empty path would be the folder ".".
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    listen: Address = Field(description="host:port to listen on; port 0 takes a free one")
    token_file: Path | None = Field(
        default=None,
        description="file with this service's own identity token; needed without mTLS",
    )
    metrics_listen: Address | None = Field(
        default=None, description="host:port of /metrics; none without it"
    )
    trusted_keys: Path = Field(
        validation_alias="TWINPATH_TRUSTED_KEYS",
        description="PEM file with the public keys that sign identity tokens",
    )
    caller_keys: Path | None = Field(
        default=None,
        validation_alias="TWINPATH_CALLER_KEYS",
        description="PEM file with outside issuers' public keys; they can't sign for services",
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

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        """Refuse a part of mTLS: a forgotten variable must not mean plain text."""
        parts = ("tls_cert", "tls_key", "tls_ca")
        missing = [variable(type(self), part) for part in parts if not getattr(self, part)]
        if missing and len(missing) < len(parts):
            raise ValueError(f"mTLS needs all three; missing: {', '.join(missing)}")
        return self


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
    except UnreadableError as error:  # a list or a table that is no JSON
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        lines = [_line(kind, dict(fault)) for fault in error.errors()]
        # One line for each variable, also where its type is a union and every branch complains.
        raise SettingsError("\n".join(dict.fromkeys(lines))) from None


def _line(kind: type[BaseSettings], fault: dict[str, Any]) -> str:
    what = (
        "is missing" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
    )
    if not fault["loc"]:
        return str(what)
    place = str(fault["loc"][0])
    field = next((n for n in kind.model_fields if place in (n, variable(kind, n))), None)
    if field is None:
        return f"{place}: {what}"
    help_text = kind.model_fields[field].description
    return f"{variable(kind, field)}: {what}" + (f" ({help_text})" if help_text else "")


def load_or_exit(kind: type[S]) -> S:
    """Read the settings; on mistakes print them all and exit with 2."""
    try:
        return load(kind)
    except SettingsError as error:
        sys.stderr.write(f"settings are wrong:\n{error}\n")
        raise SystemExit(2) from None
