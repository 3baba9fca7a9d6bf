"""Settings of the audit service, from environment variables TWINPATH_AUDIT_*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class AuditSettings(ServiceSettings):
    """Where the log is, who signs it, and how much of what it takes."""

    model_config = SettingsConfigDict(
        env_prefix="TWINPATH_AUDIT_", frozen=True, extra="ignore", populate_by_name=True
    )

    directory: Path = Field(description="folder of the log: log/, payloads/, index.sqlite")
    key_store: Path = Field(
        description="SQLite file with the subjects' keys; on another disk, with other backups"
    )
    signing_key: Path = Field(
        description="PEM file with the Ed25519 key that signs checkpoints; made if it is missing"
    )
    also_sign: Path | None = Field(
        default=None,
        description="the key before it, which co-signs while a rotation lasts; one that "
        "`twinpath audit rotate-key` left beside it is found without",
    )
    known_keys: Path | None = Field(
        default=None,
        description="file of earlier verifier keys, one a line, for old checkpoints; "
        "<signing key>.earlier.vkey is found without",
    )
    origin: str = Field(
        default="twinpath.local/audit",
        pattern=r"[^\s+]+",
        description="the log's name, as it stands in every checkpoint",
    )
    checkpoint_interval_s: float = Field(
        default=5.0, gt=0, description="seconds between signed checkpoints while the log grows"
    )
    reconcile_interval_s: float = Field(
        default=5.0, gt=0, description="seconds between searches for INTENTs without an end"
    )
    reconcile_grace_s: float = Field(
        default=30.0, ge=0, description="seconds past its deadline before an INTENT is abandoned"
    )
    max_record_bytes: int = Field(
        default=256 * 1024, ge=1024, description="largest record; larger ones are refused"
    )
    max_waiting_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1024, description="bytes that may wait for the disk"
    )
    min_free_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=0,
        description="free disk space below which the service is NOT_SERVING",
    )
    segment_records: int = Field(default=16_384, ge=1, description="records in a segment file")
    catalog: Path | None = Field(
        default=None,
        validation_alias="TWINPATH_CATALOG",
        description="the catalog's folder; its retention.yaml says how long payloads are kept",
    )
    retention_interval_s: float = Field(
        default=86_400.0, gt=0, description="seconds between removals of expired payloads"
    )
    cached_subjects: int = Field(
        default=50_000, ge=1, description="subjects whose keys stay in memory"
    )

    @property
    def retention_file(self) -> Path | None:
        """The retention file; None: the default holds for every task."""
        return self.catalog / "retention.yaml" if self.catalog is not None else None
