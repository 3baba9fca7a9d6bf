"""What the Feast registry says, as plain frozen data, prepared for reading.

Built once for each registry version by `store`, swapped as a whole, read by everything else.
Nothing here knows Feast, Redis or gRPC. Times are in microseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

# What a feature is stored as: a serialized Feast value. b"" is null, None is absent.
Raw = bytes | None


class DataClass(IntEnum):
    """How far data may go; the numbers are those of `twinpath.common.v1.DataClass`."""

    UNSPECIFIED = 0
    PUBLIC = 1
    INTERNAL = 2
    CONFIDENTIAL = 3
    RESTRICTED = 4


class Status(IntEnum):
    """How a feature is there or not; the numbers of `twinpath.common.v1.FeatureStatus`."""

    UNSPECIFIED = 0
    PRESENT = 1
    STALE = 2
    NULL = 3
    ABSENT_FEATURE = 4
    ABSENT_ENTITY = 5


@dataclass(frozen=True, slots=True)
class Field:
    """A name and its Feast value type, such as "INT64"."""

    name: str
    value_type: str


@dataclass(frozen=True, slots=True)
class KeyPart:
    """One join key of a view: `name` in the stored key, `column` in the request."""

    name: str
    column: str
    value_type: str


@dataclass(frozen=True, slots=True)
class Tags:
    """What the tags of a view or field say about its data."""

    data_class: DataClass = DataClass.UNSPECIFIED
    pii: str = ""


@dataclass(frozen=True, slots=True)
class ViewRead:
    """One stored view and the features to read of it.

    `name` is what the service calls it (its alias, if it has one), `view` its own name;
    `stored_as` names its hash fields. `ttl_us` 0: never stale.
    """

    name: str
    stored_as: str
    key: tuple[KeyPart, ...]
    features: tuple[Field, ...]
    ttl_us: int
    view: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """A stored feature that an on-demand view reads: where it stands among the reads.

    `names` are those under which the view's function may look for it.
    """

    read: int
    feature: int
    names: tuple[str, ...]
    value_type: str


@dataclass(frozen=True, slots=True)
class OnDemandView:
    """A view that is computed for each request.

    `compute` takes the inputs, the join keys and the request fields as columns of Python values
    by name, and gives columns by name; `singleton` means that it takes and gives one row's
    scalars instead. What is not `native` is slow (pandas) and gets a thread.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Field, ...]
    singleton: bool
    native: bool
    compute: Callable[[dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Output:
    """A feature of the service's answer, and where its values are.

    `stored` is (read, feature); None: output number `computed[1]` of on-demand view `computed[0]`.
    """

    view: str
    field: Field
    tags: Tags
    ttl_us: int
    stored: tuple[int, int] | None
    computed: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class FeatureService:
    """A Feast feature service, ready to be served.

    `data_class` is the strictest of all that is read, inputs of on-demand views included.
    """

    name: str
    join_keys: tuple[Field, ...]
    request_fields: tuple[Field, ...]
    reads: tuple[ViewRead, ...]
    on_demand: tuple[OnDemandView, ...]
    outputs: tuple[Output, ...]
    versions: tuple[tuple[str, str], ...]
    data_class: DataClass


@dataclass(frozen=True, slots=True)
class PushView:
    """A view that a push source feeds. `columns` maps pushed column to feature."""

    stored_as: str
    key: tuple[KeyPart, ...]
    features: tuple[tuple[str, Field], ...]


@dataclass(frozen=True, slots=True)
class PushSource:
    """A Feast push source and what its rows are written to."""

    name: str
    timestamp_column: str
    created_column: str
    views: tuple[PushView, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a view's values come from: sources in words, and the views that it is made from."""

    view: str
    version_hash: str
    sources: tuple[str, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a feature's values must keep; which fields count follows from `kind`.

    `refuse`: a row that breaks it fails; else it is only marked. `low` and `high` belong to the
    range; a null share is of the last `rows` rows.
    """

    feature: str
    kind: Literal["range", "category", "null_share"]
    refuse: bool
    low: float = 0.0
    high: float = 0.0
    allowed: frozenset[bool | int | str] = frozenset()
    max_share: float = 1.0
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Registry:
    """All of one registry version. `broken` services can't be served, each with why.

    `schemas` are the views' features and their value types; `materialized` is until when, in
    microseconds, a view was last materialized. `rules` are by view, and part of the version.
    """

    version: str
    project: str
    services: Mapping[str, FeatureService]
    broken: Mapping[str, str] = field(default_factory=dict)
    push_sources: Mapping[str, PushSource] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    schemas: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    materialized: Mapping[str, int] = field(default_factory=dict)
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)


_CLASSES = {name.name.lower(): name for name in DataClass if name is not DataClass.UNSPECIFIED}


def read_tags(tags: Mapping[str, str], complain: Callable[[str], None]) -> Tags:
    """Return what tags say. A data class that nobody knows counts as restricted: fail closed."""
    text = tags.get("data_class", "").strip().lower()
    data_class = DataClass.UNSPECIFIED
    if text:
        data_class = _CLASSES.get(text, DataClass.RESTRICTED)
        if text not in _CLASSES:
            complain(f"unknown data_class {text!r} counts as restricted")
    return Tags(data_class, tags.get("pii", "").strip())


def refine(view: Tags, own: Tags) -> Tags:
    """Return a field's tags: its own where it has them, else its view's."""
    return Tags(own.data_class or view.data_class, own.pii or view.pii)
