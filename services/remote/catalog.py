"""The providers in the catalog: `<catalog>/providers/<name>.yaml`, one file a vendor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from services.remote.catalog_access import (
    Auth,
    CaFile,
    Entry,
    Limits,
    Token,
    checked_url,
)
from services.remote.prices import Price
from services.remote.yaml_lines import CatalogError, Mistake, read
from twinpath.common.v1 import context_pb2
from twinpath.inference import tensors
from twinpath.inference.detectors import DetectorName
from twinpath.inference.v1 import inference_pb2, tensor_pb2

Name = Annotated[str, Field(min_length=1, max_length=128)]
_SECRET_HEADER = re.compile(r"authorization|cookie|token|secret|(^|-)key$", re.IGNORECASE)


class Options(Entry):
    """What a protocol wants to know beside what all have in common."""

    @classmethod
    def of(cls, owner: Model | Provider) -> Self:
        """Read the options of a model or a provider that were checked when the file was read."""
        found = _read_options.get((id(owner), cls))
        if found is None or found[0] is not owner:
            found = _read_options[id(owner), cls] = (owner, cls.model_validate(owner.options))
        options: Self = found[1]
        return options


# Models and providers live as long as the process; reading their options again for every call
# would cost more than writing the body.
_read_options: dict[tuple[int, type], tuple[Any, Any]] = {}


class TensorEntry(Entry):
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

    @cached_property
    def value(self) -> int:
        """Its data type, as the contract numbers it."""
        return tensors.datatype_value(self.datatype)

    def spec(self) -> tensor_pb2.TensorSpec:
        """Return it as the contract has it."""
        return tensor_pb2.TensorSpec(
            name=self.name,
            datatype=tensor_pb2.Datatype.Name(tensors.datatype_value(self.datatype)),
            shape=self.shape,
        )


class Model(Entry):
    """One model at one version, as the vendor offers it.

    Attributes:
        name: As candidates and grants name it.
        version: As the vendor reports it. Of several versions, the last listed serves where a
            caller names none.
        wire_name: As the vendor knows it, where that is another name.
        inputs: What it takes; checked before anything is sent.
        outputs: What it gives; checked before anything is passed on.
        price: What a call costs, where the vendor does not report it: one price, or dated ones.
        max_batch_size: Rows of one call; 0: it has no batch dimension.
        token: Our token for this model, where it has one of its own.
        limits: How much may be asked of it.
        options: What the protocol wants to know; see the provider's file.
    """

    name: Name
    version: Name
    inputs: list[TensorEntry] = Field(min_length=1)
    outputs: list[TensorEntry] = Field(min_length=1)
    wire_name: str = ""
    price: list[Price] = Field(default_factory=list)
    max_batch_size: int = Field(default=0, ge=0)
    token: Token | None = None
    limits: Limits = Limits()
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def on_wire(self) -> str:
        """Its name as the vendor knows it."""
        return self.wire_name or self.name

    @field_validator("price", mode="before")
    @classmethod
    def _book(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, entries in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [entry.name for entry in entries]
            if len(set(names)) != len(names):
                raise ValueError(f"two {what} have the same name")
        days = [price.since for price in self.price]
        if len(set(days)) != len(days):
            raise ValueError("two prices hold from the same day")
        return self


class Provider(Entry):
    """One vendor.

    Attributes:
        name: As candidates and grants name it; the file's own name.
        protocol: Which adapter speaks to it.
        base_url: Where it is; https, or http on this machine only unless `plain_http` is set.
        plain_http: Whether http to another machine is accepted.
        ca_file: Certificates of the authorities that sign the vendor's, where the system does not
            know them (servers on the premises); then no others are trusted.
        token: Our token for it.
        region: Where it processes what it gets.
        max_data_class: The strictest class of data that it may get.
        consents: What the data subject must have agreed to before this vendor gets anything.
        models: What it offers.
        encoding: `binary` sends tensors as raw bytes, `json` as numbers, for vendors without the
            binary extension (which can't take NaN, FP16 and BF16).
        cost_header: The answer's header with the cost of the call in US dollars, if it has one.
        auth: In which header our token goes; absent: as the protocol has it.
        headers: Further headers, without secrets (an organization, a beta flag).
        query: Further parameters of every URL (Azure's `api-version`).
        probe_path: What to GET to see if it is there; absent: as the protocol has it.
        allow: Detectors that don't refuse here, because such content is meant for this vendor.
        options: What the protocol wants to know; see the provider's file.
        connect_timeout_s: Seconds to connect.
        silence_timeout_s: Seconds without a byte after which the vendor counts as silent.
        first_byte_timeout_s: The same for its first byte alone, where a model may think for longer;
            absent: as between two.
        timeout_s: Seconds that one call may take at most, whatever the caller's deadline.
        max_connections: Connections kept to it.
    """

    name: Name
    protocol: str
    base_url: str
    plain_http: bool = False
    ca_file: CaFile | None = None
    token: Token
    region: Name
    max_data_class: Literal["public", "internal", "confidential"]
    consents: frozenset[Name] = frozenset()
    models: list[Model] = Field(min_length=1)
    encoding: Literal["binary", "json"] = "binary"
    cost_header: str | None = None
    auth: Auth | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    query: dict[str, str] = Field(default_factory=dict)
    probe_path: str | None = None
    allow: frozenset[DetectorName] = frozenset()
    options: dict[str, Any] = Field(default_factory=dict)
    connect_timeout_s: float = Field(default=2.0, gt=0)
    silence_timeout_s: float = Field(default=30.0, gt=0)
    first_byte_timeout_s: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=60.0, gt=0)
    max_connections: int = Field(default=100, ge=1)

    @field_validator("max_data_class", mode="before")
    @classmethod
    def _never_restricted(cls, value: object) -> object:
        if value == "restricted":
            raise ValueError("restricted data never leaves; the highest class is confidential")
        return value

    @field_validator("ca_file")
    @classmethod
    def _encrypted(cls, value: CaFile | None, info: ValidationInfo) -> CaFile | None:
        if value is not None and not str(info.data.get("base_url")).startswith("https://"):
            raise ValueError("has no effect without https")
        return value

    @model_validator(mode="after")
    def _checked(self) -> Self:
        try:
            checked_url(self.base_url, plain_http=self.plain_http)
        except ValueError as error:
            raise ValueError(f"base_url {error}") from None
        for name, value in self.headers.items():
            if _SECRET_HEADER.search(name) or not (value.isascii() and value.isprintable()):
                raise ValueError(f"headers: {name}: no secrets here, and printable ASCII only")
        known = [(model.name, model.version) for model in self.models]
        if len(set(known)) != len(known):
            raise ValueError("a model stands twice at the same version")
        return self

    @cached_property
    def ceiling(self) -> int:
        """The strictest class of data that it may get, as the contract numbers it."""
        return context_pb2.DataClass.Value(f"DATA_CLASS_{self.max_data_class.upper()}")

    @property
    def first_byte_s(self) -> float:
        """Seconds after which a vendor that sent nothing yet counts as silent."""
        return self.first_byte_timeout_s or self.silence_timeout_s

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
    catalog: Path,
    check: Callable[[Provider], Iterable[Mistake]],
    environment: Mapping[str, str] | None = None,
) -> dict[str, Provider]:
    """Read all provider files.

    Args:
        catalog: The catalog's folder.
        check: Finds what the provider's protocol does not understand.
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
            provider = read(path, Provider, environment, check)
        except CatalogError as error:
            mistakes.append(str(error))
            continue
        if provider.name != path.stem:
            mistakes.append(f"{path}:1: name: must be the file's own name, {path.stem}")
        providers[provider.name] = provider
    if mistakes:
        raise CatalogError("\n".join(mistakes))
    return providers
