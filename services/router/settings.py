"""The router's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class RouterSettings(ServiceSettings):
    """Where the other services are, and how much the router takes on."""

    model_config = SettingsConfigDict(
        env_prefix="TWINPATH_ROUTER_", frozen=True, extra="ignore", populate_by_name=True
    )

    features_address: str = Field(
        validation_alias="TWINPATH_FEATURES_ADDRESS", description="host:port of features"
    )
    local_address: str = Field(
        validation_alias="TWINPATH_LOCAL_ADDRESS", description="host:port of local"
    )
    remote_address: str = Field(
        validation_alias="TWINPATH_REMOTE_ADDRESS", description="host:port of remote"
    )
    audit_address: str = Field(
        validation_alias="TWINPATH_AUDIT_ADDRESS", description="host:port of audit"
    )
    state_url: str = Field(
        validation_alias="TWINPATH_STATE_URL", description="redis:// URL of the state store"
    )
    catalog: Path = Field(
        validation_alias="TWINPATH_CATALOG", description="folder with tasks/ and policies/"
    )
    grant_key: Path = Field(description="PEM file with the Ed25519 private key that signs grants")
    max_in_flight: int = Field(
        default=512,
        ge=1,
        description="the adaptive limit of decisions at once never goes above this",
    )
    batch_beside: int = Field(
        default=1,
        ge=1,
        description="items of batches (priority BATCH) decided at once while more urgent requests "
        "come in; more is faster for them and slower for the others",
    )
    split_key: Path | None = Field(
        default=None,
        description="file with the secret that deals entities to arms, 16 bytes or more, the same "
        "for all routers; none: the grant key, and a new grant key deals anew",
    )
    cache_key: Path | None = Field(
        default=None,
        description="file with the 32 bytes that encrypt kept answers; none: nothing is kept",
    )
    pseudonym_key: Path | None = Field(
        default=None,
        description="file with the 32 bytes that make pseudonyms of entity keys, the same at every "
        "router; none: tasks that show models their entity are refused",
    )
    outbox: Path | None = Field(
        default=None, description="file for records while audit is away; none: no outbox"
    )
    outbox_bytes: int = Field(default=64 * 1024 * 1024, ge=65536, description="its largest size")
    jobs_poll_s: float = Field(
        default=10.0, gt=0, description="seconds between looks at the batch jobs that run"
    )
    refresh_s: float = Field(
        default=1.0, gt=0, description="seconds between looks at the paths and the catalog's files"
    )
