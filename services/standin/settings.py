"""Settings of the stand-in vendor, from environment variables TWINPATH_STANDIN_*."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """How the stand-in vendor is run.

    Each field is the environment variable TWINPATH_STANDIN_<FIELD>; all mistakes are reported at
    once, by name.
    """

    model_config = SettingsConfigDict(env_prefix="TWINPATH_STANDIN_", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address of the public protocol.")
    port: int = Field(default=0, ge=0, le=65535, description="Its port; 0 takes a free one.")
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of its gRPC side; absent: there is none."
    )
    admin_port: int = Field(
        default=0, ge=0, le=65535, description="Port of the admin endpoint, always on 127.0.0.1."
    )
    token: SecretStr | None = Field(default=None, description="Bearer token that may do all.")
    token_file: Path | None = Field(default=None, description="File that holds the token instead.")
    limited_token: SecretStr | None = Field(
        default=None, description="A token that is known but may not infer (it gets 403)."
    )
    oauth_lifetime_s: float = Field(
        default=300.0, gt=0, description="Seconds that a token of its token server lives."
    )
    models: Path | None = Field(
        default=None, description="Folder with <name>/<version>/model.onnx; None: `echo` only."
    )
    price_per_call_usd: Decimal = Field(default=Decimal("0.00025"), ge=0)
    price_per_element_usd: Decimal = Field(
        default=Decimal(0), ge=0, description="Added for each element of the input tensors."
    )
    price_per_token_usd: Decimal = Field(
        default=Decimal(0), ge=0, description="Added for each token of a language model."
    )
    latency_ms: float = Field(default=0.0, ge=0, description="Added before every answer.")
    jitter_ms: float = Field(default=0.0, ge=0, description="Uniform, on top of the latency.")
    seed: int = Field(default=0, description="Of the jitter and of faults by probability.")
    fault_header: bool = Field(
        default=True, description="Whether callers may ask for a fault by `x-standin-fault`."
    )
    batch_looks: int = Field(
        default=2, ge=1, description="A batch is complete once it was looked at so often."
    )
    max_body_bytes: int = Field(default=16 * 2**20, ge=1, description="Larger bodies get 413.")
    log_entries: int = Field(default=2000, ge=0, description="Requests kept for the admin's log.")
    log_bytes: int = Field(default=64 * 2**20, ge=0, description="Bytes of bodies kept for it.")
    threads: int = Field(default=2, ge=1, description="Threads that run models.")

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if (self.token is None) == (self.token_file is None):
            raise ValueError(
                "set exactly one of TWINPATH_STANDIN_TOKEN and TWINPATH_STANDIN_TOKEN_FILE"
            )
        if not self.bearer:
            raise ValueError("the stand-in vendor's token is empty")
        return self

    @property
    def bearer(self) -> str:
        """The token that may do all."""
        if self.token is not None:
            return self.token.get_secret_value()
        assert self.token_file is not None
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise ValueError(f"TWINPATH_STANDIN_TOKEN_FILE: {error}") from error

    @property
    def limited_bearer(self) -> str | None:
        """The token that is known but may not infer, if there is one."""
        return None if self.limited_token is None else self.limited_token.get_secret_value()
