"""The providers in the catalog: `<catalog>/providers/<name>.yaml`, one file a vendor."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from services.remote.yaml_lines import CatalogError, read
from twinpath.common.v1 import context_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

Name = Annotated[str, Field(min_length=1, max_length=128)]


class _Entry(BaseModel):
    """No unknown keys: a misspelt one must not pass for an absent one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorEntry(_Entry):
    """One tensor of a model.

    Attributes:
        name: Its name.
        datatype: As the Open Inference Protocol names it.
        shape: Its dimensions, the batch dimension included; -1 is any size.
        optional: Whether it may be missing.
    """

    name: Name
    datatype: str
    shape: list[Annotated[int, Field(ge=-1)]]
    optional: bool = False

    @field_validator("datatype")
    @classmethod
    def _known(cls, value: str) -> str:
        tensors.datatype_value(value)
        if value == "UNSPECIFIED":
            raise ValueError("must be a data type")
        return value

    def spec(self) -> tensor_pb2.TensorSpec:
        """Return it as the contract has it."""
        return tensor_pb2.TensorSpec(
            name=self.name,
            datatype=tensor_pb2.Datatype.Name(tensors.datatype_value(self.datatype)),
            shape=self.shape,
        )


class Price(_Entry):
    """What a call costs, in billionths of a US dollar.

    Attributes:
        per_call_nanos_usd: For each call.
        per_kib_out_nanos_usd: For each 1024 bytes of the body that we send, in proportion.
    """

    per_call_nanos_usd: int = Field(ge=0)
    per_kib_out_nanos_usd: int = Field(default=0, ge=0)

    def estimate(self, bytes_out: int) -> int:
        """Return the price of a call in billionths of a US dollar."""
        return self.per_call_nanos_usd + self.per_kib_out_nanos_usd * bytes_out // 1024


class Model(_Entry):
    """One model at one version, as the vendor offers it.

    Attributes:
        name: As the vendor knows it.
        version: As the vendor knows it. Of several versions, the last listed serves where a
            caller names none.
        inputs: What it takes; checked before anything is sent.
        outputs: What it gives; checked before anything is passed on.
        price: What a call costs, where the vendor does not report it.
        max_batch_size: Rows of one call; 0: it has no batch dimension.
        candidates: Candidates' ids that a grant for it may name; empty: any.
    """

    name: Name
    version: Name
    inputs: list[TensorEntry] = Field(min_length=1)
    outputs: list[TensorEntry] = Field(min_length=1)
    price: Price | None = None
    max_batch_size: int = Field(default=0, ge=0)
    candidates: list[str] = []

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, entries in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [entry.name for entry in entries]
            if len(set(names)) != len(names):
                raise ValueError(f"two {what} have the same name")
        return self


class Token(_Entry):
    """Where our token for the vendor comes from.

    Attributes:
        file: A file, read again when it changes.
        env: An environment variable.
    """

    file: Path | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("name either a file or an environment variable (env)")
        return self


class Provider(_Entry):
    """One vendor.

    Attributes:
        name: As candidates and grants name it; the file's own name.
        protocol: Which adapter speaks to it.
        base_url: Where it is; https, or http on this machine only unless `plain_http` is set.
        plain_http: Whether http to another machine is accepted.
        token: Our token for it.
        region: Where it processes what it gets.
        max_data_class: The strictest class of data that it may get.
        models: What it offers.
        encoding: `binary` sends tensors as raw bytes, `json` as numbers, for vendors without the
            binary extension (which can't take NaN, FP16 and BF16).
        cost_header: The answer's header with the cost of the call in US dollars, if it has one.
        connect_timeout_s: Seconds to connect.
        timeout_s: Seconds that one call may take at most, whatever the caller's deadline.
        max_connections: Connections kept to it.
    """

    name: Name
    protocol: str
    base_url: str
    plain_http: bool = False
    token: Token
    region: Name
    max_data_class: Literal["public", "internal", "confidential"]
    models: list[Model] = Field(min_length=1)
    encoding: Literal["binary", "json"] = "binary"
    cost_header: str | None = None
    connect_timeout_s: float = Field(default=2.0, gt=0)
    timeout_s: float = Field(default=60.0, gt=0)
    max_connections: int = Field(default=100, ge=1)

    @field_validator("max_data_class", mode="before")
    @classmethod
    def _never_restricted(cls, value: object) -> object:
        if value == "restricted":
            raise ValueError("restricted data never leaves; the highest class is confidential")
        return value

    @model_validator(mode="after")
    def _checked(self) -> Self:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("base_url must be http(s)://host[:port][/path]")
        if url.query or url.fragment or url.username:
            raise ValueError("base_url must not hold a query, a fragment or a user")
        if url.scheme == "http" and not (self.plain_http or _is_loopback(url.hostname)):
            raise ValueError("base_url must be https (or set plain_http: true)")
        known = [(model.name, model.version) for model in self.models]
        if len(set(known)) != len(known):
            raise ValueError("a model stands twice at the same version")
        return self

    @cached_property
    def ceiling(self) -> int:
        """The strictest class of data that it may get, as the contract numbers it."""
        return context_pb2.DataClass.Value(f"DATA_CLASS_{self.max_data_class.upper()}")

    def find(self, name: str, version: str) -> Model | None:
        """Return a model; the last listed version if none is named; None if there is none."""
        found = [m for m in self.models if m.name == name and version in ("", m.version)]
        return found[-1] if found else None


def describe(provider: Provider, model: Model) -> inference_pb2.ModelDescription:
    """Return what the catalog says about a model; its state is not filled in."""
    return inference_pb2.ModelDescription(
        name=model.name,
        version=model.version,
        path=context_pb2.PATH_REMOTE,
        provider=provider.name,
        inputs=[entry.spec() for entry in model.inputs],
        outputs=[entry.spec() for entry in model.outputs],
        max_batch_size=model.max_batch_size,
        region=provider.region,
    )


def load(
    catalog: Path, protocols: frozenset[str], environment: Mapping[str, str] | None = None
) -> dict[str, Provider]:
    """Read all provider files.

    Args:
        catalog: The catalog's folder.
        protocols: Protocols for which there is an adapter.
        environment: Variables for `${…}`; None: the process's own.

    Raises:
        CatalogError: With file, line and rule of every mistake in all files.
    """
    folder = catalog / "providers"
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise CatalogError(f"{folder}: holds no provider file")
    providers: dict[str, Provider] = {}
    mistakes: list[str] = []
    for path in files:
        try:
            provider = read(path, Provider, environment)
        except CatalogError as error:
            mistakes.append(str(error))
            continue
        if provider.name != path.stem:
            mistakes.append(f"{path}:1: name: must be the file's own name, {path.stem}")
        if provider.protocol not in protocols:
            known = ", ".join(sorted(protocols))
            mistakes.append(f"{path}:1: protocol: {provider.protocol} is none of: {known}")
        providers[provider.name] = provider
    if mistakes:
        raise CatalogError("\n".join(mistakes))
    return providers


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
