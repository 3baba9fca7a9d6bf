"""Settings of the local path, from TWINPATH_LOCAL_… and the shared variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class LocalSettings(ServiceSettings):
    """How the local path is run."""

    model_config = SettingsConfigDict(
        env_prefix="TWINPATH_LOCAL_", frozen=True, extra="ignore", populate_by_name=True
    )

    triton_url: str = Field(
        validation_alias="TWINPATH_TRITON_URL",
        description="host:port of Triton's gRPC; several replicas separated by commas",
    )
    triton_http: str = Field(
        default="",
        validation_alias="TWINPATH_TRITON_HTTP",
        description="host:port of Triton's HTTP, for each replica in the same order: small "
        "requests of quick models go there, for less than half of the CPU; unset: all go by gRPC",
    )
    models: Path | None = Field(
        default=None,
        description="Triton's model repository as this service sees it, for cards and artifact "
        "digests; unset: digests are not known",
    )
    artifact_keys: Path | None = Field(
        default=None,
        description="PEM file with the public keys that sign model cards; set: a model without a "
        "card that one of them signed is refused",
    )
    catalog: Path | None = Field(
        default=None,
        validation_alias="TWINPATH_CATALOG",
        description="the catalog's folder; set: a model that differs from what a task expects of "
        "it is refused",
    )
    control: Literal["none", "explicit"] = Field(
        default="none",
        description="explicit: this service loads, warms up and unloads the models; Triton runs "
        "with --model-control-mode explicit. One such service owns a Triton: a second one would "
        "undo its loads",
    )
    control_file: Path | None = Field(
        default=None,
        description="where explicit control keeps what operators asked for; unset: it is "
        "forgotten when this service ends",
    )
    load_timeout_s: float = Field(
        default=120.0, gt=0, description="seconds that Triton may take to load a version"
    )
    warm_up_timeout_s: float = Field(
        default=30.0, gt=0, description="seconds that a warm-up inference may take"
    )
    unload_drain_s: float = Field(
        default=30.0, ge=0, description="seconds to wait for a version's requests on unloading"
    )
    unload_grace_s: float = Field(
        default=5.0,
        ge=0,
        description="seconds for which a version that served until just now answers on before it "
        "is unloaded; longer than routers take to look (TWINPATH_ROUTER_REFRESH_S)",
    )
    machine_usd_per_hour: float = Field(
        default=0.0, ge=0, description="price of Triton's machine; 0: not known, so no costs"
    )
    machine_slots: int = Field(
        default=1,
        ge=1,
        description="inferences that the machine computes at once (cores, or 1 for one GPU); the "
        "price is split among them",
    )
    machine_watts: float = Field(
        default=0.0,
        ge=0,
        description="power that the machine takes under load; 0: not known. Energy in the metrics "
        "is an estimate from it",
    )
    shared_memory_from_bytes: int = Field(
        default=1024 * 1024,
        ge=0,
        description="tensors of so many bytes and more go through shared memory to a Triton on "
        "this host's loopback that sees our /dev/shm; 0: none do",
    )
    shared_memory_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1024 * 1024,
        description="the most shared memory; it is taken when it is used. What finds no room goes "
        "by wire",
    )
    refresh_s: float = Field(
        default=2.0, gt=0, description="seconds between looks at Triton's models and statistics"
    )
    model_concurrency: int = Field(
        default=64, ge=1, description="inferences of one model in flight at once"
    )
    batch_requests: int = Field(
        default=2,
        ge=1,
        description="requests of priority BATCH with Triton at once, all models together, so that "
        "a batch job leaves most of the machine to others",
    )
    model_waiting: int = Field(
        default=512, ge=0, description="inferences of one model that wait; more are refused"
    )

    @field_validator("triton_url")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for address in value.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdigit() or "/" in host:
                raise ValueError(f"{address.strip()!r} is not host:port")
        return value

    @field_validator("triton_http")
    @classmethod
    def _no_address_or_some(cls, value: str) -> str:
        return cls._addresses(value) if value else value

    @model_validator(mode="after")
    def _doors_belong_together(self) -> Self:
        if self.triton_http and len(self.doors) != len(self.replicas):
            raise ValueError("TWINPATH_TRITON_HTTP must name as many as TWINPATH_TRITON_URL")
        return self

    @model_validator(mode="after")
    def _keys_need_files(self) -> Self:
        if self.artifact_keys is not None and self.models is None:
            raise ValueError(
                "TWINPATH_LOCAL_ARTIFACT_KEYS needs TWINPATH_LOCAL_MODELS: "
                "without the files no signature can be checked"
            )
        if self.control == "explicit" and self.models is None:
            raise ValueError(
                "TWINPATH_LOCAL_CONTROL=explicit needs TWINPATH_LOCAL_MODELS: "
                "what is loaded is checked on disk first"
            )
        return self

    @staticmethod
    def is_loopback(address: str) -> bool:
        """Tell whether a replica is on this host."""
        host = address.rpartition(":")[0].strip("[]")
        return host in ("localhost", "::1") or host.startswith("127.")

    @property
    def replicas(self) -> list[str]:
        """The replicas' addresses, each once, in the order given."""
        return _each_once(self.triton_url)

    @property
    def doors(self) -> list[str]:
        """The addresses of the replicas' HTTP, in the same order; empty: not known."""
        return _each_once(self.triton_http) if self.triton_http else []


def _each_once(addresses: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in addresses.split(",")))
