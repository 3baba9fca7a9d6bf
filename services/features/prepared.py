"""A feature service made ready for the hot path, and the registry that is in force."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import Gauge

from services.chassis import errors
from services.features import values, wire
from services.features.definitions import (
    DataClass,
    FeatureService,
    Output,
    PushSource,
    Registry,
)
from services.features.keys import Group, Slice, group_reads
from services.features.validation import Check, checks_for
from twinpath.features.v1 import features_pb2

log = logging.getLogger(__name__)

REGISTRY_OK = Gauge(
    "twinpath_features_registry_ok", "1 while the newest Feast registry is the one in force."
)


class Loader(Protocol):
    """Reads the registry; see `store.FeastRepo.load`."""

    def load(self) -> Registry | None:
        """Return the registry; None when it has not changed. Raises when it is broken."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """Columns of one view and one kind, which are read, checked and written together.

    `start` is the first one's place in the view, `outputs` are their places in the answer. `kind`
    is None where they are not numbers of a fixed size. `lows` and `highs` are each column's
    narrowest range; None: there are no ranges.
    """

    read: int
    start: int
    outputs: tuple[int, ...]
    value_type: str
    kind: values.Fixed | None
    limits: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A feature service with its Redis commands, and the parts of answers that never change.

    `keys` and `requests` are the join keys and the request fields, and their value types.
    `ending` is what of an answer is not about rows, serialized. `slots` are the answer's columns;
    `blocks` are those that are stored, `computed` the others. `checks` are the validation rules.
    """

    service: FeatureService
    keys: Mapping[str, str]
    requests: Mapping[str, str]
    groups: tuple[Group, ...]
    slices: tuple[Slice, ...]
    lineage: features_pb2.FeatureLineage
    ending: bytes
    slots: tuple[wire.Slot, ...]
    blocks: tuple[Block, ...]
    computed: tuple[int, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class InForce:
    """One registry version, prepared. Readers take it once and keep it for their whole call."""

    registry: Registry
    services: Mapping[str, Prepared]
    broken: Mapping[str, str]

    def service(self, name: str) -> Prepared:
        """Return a feature service.

        Raises:
            NotFoundError: when there is none of this name.
            FailedPreconditionError: when its definition can't be served.
        """
        found = self.services.get(name)
        if found is not None:
            return found
        if name in self.broken:
            raise errors.FailedPreconditionError(
                "FEATURE_SERVICE_BROKEN",
                f"feature service {name!r} can't be served: {self.broken[name]}",
                metadata={"feature_service": name},
            )
        raise errors.NotFoundError(
            "FEATURE_SERVICE_UNKNOWN",
            f"there is no feature service {name!r}",
            metadata={"feature_service": name, "registry_version": self.registry.version},
        )

    def push_source(self, name: str) -> PushSource:
        """Return a push source.

        Raises:
            NotFoundError: when there is none of this name.
        """
        found = self.registry.push_sources.get(name)
        if found is None:
            raise errors.NotFoundError(
                "PUSH_SOURCE_UNKNOWN",
                f"there is no push source {name!r}",
                metadata={"push_source": name},
            )
        return found


def prepare(registry: Registry) -> InForce:
    """Prepare all feature services of a registry; those that can't be are broken."""
    services: dict[str, Prepared] = {}
    broken = dict(registry.broken)
    for name, service in registry.services.items():
        try:
            groups, slices = group_reads(service.reads, registry.project)
        except TypeError as error:
            broken[name] = str(error)
            log.warning(
                "feature service can't be served",
                extra={"feature_service": name, "why": str(error)},
            )
            continue
        lineage = features_pb2.FeatureLineage(
            feature_service=name,
            registry_version=registry.version,
            views=[features_pb2.ViewVersion(view=v, version_hash=h) for v, h in service.versions],
        )
        ending = features_pb2.GetFeaturesResponse(lineage=lineage)
        ending.data_class = wire_class(service.data_class)
        checks = checks_for(service, registry.rules)
        services[name] = Prepared(
            service=service,
            keys={item.name: item.value_type for item in service.join_keys},
            requests={item.name: item.value_type for item in service.request_fields},
            groups=groups,
            slices=slices,
            lineage=lineage,
            ending=ending.SerializeToString(),
            slots=tuple(_slot(output) for output in service.outputs),
            blocks=tuple(_blocks(service.outputs, checks)),
            computed=tuple(n for n, o in enumerate(service.outputs) if o.computed is not None),
            checks=checks,
        )
    return InForce(registry, services, broken)


def _slot(output: Output) -> wire.Slot:
    column = features_pb2.FeatureColumn(
        view=output.view, feature=output.field.name, pii=output.tags.pii
    )
    column.data_class = wire_class(output.tags.data_class)
    column.values.name = f"{output.view}__{output.field.name}"
    return wire.slot(column)


def _blocks(outputs: Sequence[Output], checks: Sequence[Check]) -> Iterator[Block]:
    """Yield the stored columns: neighbours of one kind together, all others alone."""
    run: list[int] = []
    for number, output in enumerate(outputs):
        if output.stored is None:
            continue
        if run and not _follows(outputs[run[-1]], output):
            yield _block(outputs, run, checks)
            run = []
        run.append(number)
    if run:
        yield _block(outputs, run, checks)


def _follows(one: Output, other: Output) -> bool:
    assert one.stored is not None
    assert other.stored is not None
    same = one.field.value_type == other.field.value_type in values.FIXED
    return same and other.stored == (one.stored[0], one.stored[1] + 1)


def _block(outputs: Sequence[Output], run: Sequence[int], checks: Sequence[Check]) -> Block:
    first = outputs[run[0]]
    assert first.stored is not None
    ranges = [[c.rule for c in checks if c.column == n and c.rule.kind == "range"] for n in run]
    limits = None
    if any(ranges):
        lows = tuple(max((rule.low for rule in rules), default=-math.inf) for rules in ranges)
        highs = tuple(min((rule.high for rule in rules), default=math.inf) for rules in ranges)
        limits = (lows, highs)
    value_type = first.field.value_type
    return Block(*first.stored, tuple(run), value_type, values.FIXED.get(value_type), limits)


def wire_class(data_class: DataClass) -> Any:
    """Return the contract's enum value; its type exists in stubs only."""
    return int(data_class)


class Live:
    """The registry in force, kept up to date in the background.

    The registry is read and prepared in a thread and then swapped as a whole: readers never
    wait. One that is broken changes nothing; `problem` then says what is wrong.

    Args:
        loader: Reads the registry.
        interval_s: Seconds between two looks at it.
        changed: Hears of each registry that comes into force.
    """

    def __init__(
        self,
        loader: Loader,
        interval_s: float,
        changed: Callable[[InForce], None] = lambda _: None,
    ) -> None:
        self._loader = loader
        self._interval_s = interval_s
        self._changed = changed
        self._in_force: InForce | None = None
        self.problem = "the Feast registry has not been read yet"

    def get(self) -> InForce:
        """Return the registry in force.

        Raises:
            UnavailableError: when none could be read yet.
        """
        if self._in_force is None:
            raise errors.UnavailableError(
                "REGISTRY_UNAVAILABLE", "no Feast registry has been read yet", retry_after=1.0
            )
        return self._in_force

    async def refresh(self) -> bool:
        """Look at the registry once; tell whether a new version is in force now."""
        try:
            found = await asyncio.to_thread(self._load)
        except Exception as error:  # noqa: BLE001 - whatever it is, the last good one stays
            text = str(error) or type(error).__name__
            if text != self.problem:
                log.error("registry not read", extra={"why": text})
            self.problem = text
            REGISTRY_OK.set(0)
            return False
        self.problem = ""
        REGISTRY_OK.set(1)
        if found is None:
            return False
        self._in_force = found
        self._changed(found)
        log.info(
            "registry in force",
            extra={"version": found.registry.version, "feature_services": sorted(found.services)},
        )
        return True

    def _load(self) -> InForce | None:
        registry = self._loader.load()
        return None if registry is None else prepare(registry)

    async def watch(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._interval_s)

    async def ping(self) -> None:
        """Raise while no registry could be read; the last good one will do."""
        if self._in_force is None:
            raise RuntimeError(self.problem)
