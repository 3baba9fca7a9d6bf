"""Settings of the feature service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings
from services.features.online import Topology, check_url


class FeaturesSettings(ServiceSettings):
    """What the feature service needs, from TWINPATH_FEATURES_… variables."""

    model_config = SettingsConfigDict(
        env_prefix="TWINPATH_FEATURES_", frozen=True, extra="ignore", populate_by_name=True
    )

    url: Annotated[str, AfterValidator(check_url)] = Field(
        description="redis:// URL of the online store; host:port,host:port for several"
    )
    topology: Topology = Field(
        default="standalone", description="what answers there: standalone, sentinel or cluster"
    )
    sentinel_master: str = Field(default="mymaster", description="the master's name, with Sentinel")
    repo: Path = Field(description="folder of the Feast repo, with its feature_store.yaml")
    refresh_interval_s: float = Field(
        default=2.0,
        gt=0,
        le=5,
        description="seconds between two looks at the Feast registry; `feast apply` is promised to "
        "be live within 10 s",
    )

    redis_timeout_s: float = Field(
        default=1.0, gt=0, description="longest wait in seconds for the online store"
    )
    stream: str = Field(
        default="",
        description="Redis stream on the online store whose entries are written as rows of push "
        "sources; empty: none is read",
    )
    stream_group: str = Field(
        default="twinpath-features", min_length=1, description="consumer group on that stream"
    )
    stream_claim_after_s: float = Field(
        default=10.0,
        gt=0,
        description="seconds after which an entry that a consumer read and did not acknowledge is "
        "taken over by another",
    )
    share_up_to_keys: int = Field(
        default=64,
        ge=0,
        description="requests with up to this many keys share round trips to the online store",
    )
    round_trip_keys: int = Field(
        default=512, ge=1, description="a shared round trip has at most about this many keys"
    )
    samples: Path | None = Field(
        default=None,
        description="folder for samples of served vectors, as Parquet; empty: none are taken",
    )
    sample_share: float = Field(
        default=0.01, ge=0, le=1, description="share of the calls that are sampled"
    )
    sample_files: int = Field(
        default=500, ge=1, description="most files of samples for each feature service"
    )
    sample_interval_s: float = Field(
        default=60.0, gt=0, description="seconds between two files of samples"
    )
    sample_restricted: bool = Field(
        default=False, description="sample restricted feature services, too"
    )
    sample_key_file: Path | None = Field(
        default=None,
        description="file whose content is the key of the entities' pseudonyms in samples; "
        "empty: samples have none",
    )
    lineage_file: Path | None = Field(
        default=None,
        description="file for OpenLineage events, one line each; empty: data/openlineage.jsonl in "
        "the repo. OpenLineage's own variables (OPENLINEAGE_URL, ...) send them elsewhere, "
        "OPENLINEAGE_DISABLED=true nowhere",
    )
    lineage_interval_s: float = Field(
        default=60.0, gt=0, description="seconds between two emissions of OpenLineage events"
    )
