"""Settings of the remote service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class RemoteSettings(ServiceSettings):
    """What the remote service needs beside what all services need."""

    model_config = SettingsConfigDict(
        env_prefix="TWINPATH_REMOTE_", frozen=True, extra="ignore", populate_by_name=True
    )

    catalog: Path = Field(
        validation_alias="TWINPATH_CATALOG", description="the catalog's folder; holds providers/"
    )
    grant_keys: Path = Field(
        validation_alias="TWINPATH_GRANT_KEYS",
        description="PEM file with the public keys that sign the router's grants",
    )
    grant_memory: int = Field(
        default=200_000,
        ge=1,
        description="used grants remembered at most; when full, further grants are refused",
    )
    grant_lifetime_s: float = Field(
        default=3660.0,
        gt=0,
        description="a grant that expires later than so many seconds from now is refused",
    )
    grant_leeway_s: float = Field(
        default=1.0,
        ge=0,
        description="seconds for which an expired grant still serves (once): the router's clock "
        "may be behind ours, and a grant lives only as long as its attempt",
    )
    state_url: str | None = Field(
        default=None,
        validation_alias="TWINPATH_STATE_URL",
        description="redis:// URL of the state store, where limits of all replicas are kept; "
        "without it each replica has limits of its own",
    )
    state_timeout_s: float = Field(
        default=0.1, gt=0, description="seconds that the state store may add to a call"
    )
    probe_interval_s: float = Field(
        default=5.0, gt=0, description="seconds for which a vendor that answered counts as up"
    )
    max_answer_bytes: int = Field(
        default=16 * 1024 * 1024, ge=1024, description="largest body taken from a vendor"
    )
