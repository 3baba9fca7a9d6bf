"""The only place that imports Feast: reads its registry, and converts values as it does.

Feast resolves names, projections and aliases here with its own code, once for each registry
version; the hot path then needs no Feast object any more, only `definitions`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import prometheus_client  # noqa: F401 - before feast, see feast_quietly
import redis.asyncio.client  # noqa: F401 - as above: feast imports it, too

from services.features.definitions import (
    DataClass,
    FeatureService,
    Field,
    Input,
    KeyPart,
    OnDemandView,
    Origin,
    Output,
    PushSource,
    PushView,
    Registry,
    Tags,
    ViewRead,
    read_tags,
    refine,
)
from services.features.lineage import source_text, source_words, version_hash


@contextlib.contextmanager
def feast_quietly() -> Iterator[None]:
    """Keep feast's import from switching this process's and its children's metrics to files.

    It sets two variables that make prometheus_client write to a directory that nobody reads.
    Whoever imported prometheus_client first is safe; the variables must not stay for the rest.
    """
    names = ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR")
    before = {name: os.environ.get(name) for name in names}
    for name in names:
        os.environ.setdefault(name, "")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


with feast_quietly():
    import pyarrow as pa
    from feast import FeatureStore, OnDemandFeatureView, utils
    from feast.data_source import PushSource as FeastPushSource
    from feast.feature_view import DUMMY_ENTITY_ID
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.repo_config import load_repo_config
    from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
    from feast.value_type import ValueType

log = logging.getLogger(__name__)

_SETTLE_S = 0.1


class RegistryError(Exception):
    """The registry is missing, or can't be read or understood."""


def parse(raw: bytes) -> tuple[str, Any]:
    """Return (kind, payload) of a stored value; kind is the field's name, "" for null.

    Raises:
        ValueError: when the bytes are not a Feast value.
    """
    try:
        value = Value.FromString(raw)
    except Exception as error:
        raise ValueError("not a Feast value") from error
    kind = value.WhichOneof("val")
    return (kind, getattr(value, kind)) if kind else ("", None)


def to_python(raw: bytes | None, value_type: str) -> Any:
    """Return a stored value as on-demand views see it."""
    if not raw:
        return None
    return feast_value_type_to_python_type(Value.FromString(raw), ValueType[value_type])


def from_python(values: Sequence[Any], value_type: str) -> list[bytes]:
    """Return Python values as stored values; null is b"".

    Raises:
        Exception: whatever Feast raises for values that don't fit the type.
    """
    protos = python_values_to_proto_values(list(values), ValueType[value_type])
    return [proto.SerializeToString() for proto in protos]


class FeastRepo:
    """A Feast repo's registry; `load` may run in any thread.

    Args:
        path: The repo's folder.
        settle_s: `feast apply` does not write its file at once; a change counts when it has
            stayed the same for this long, in seconds.
    """

    def __init__(self, path: Path, settle_s: float = _SETTLE_S) -> None:
        self._path = path
        self._settle_s = settle_s
        self._store: FeatureStore | None = None
        self._digest = b""
        self._lock = threading.Lock()

    def load(self) -> Registry | None:
        """Return the registry as it is now; None when it has not changed since the last call.

        Raises:
            RegistryError: when it is missing or broken; the caller keeps the last good one.
        """
        with self._lock:
            try:
                return self._load()
            except RegistryError:
                raise
            except Exception as error:
                text = f"{type(error).__name__}: {error}"[:500]
                raise RegistryError(f"the Feast registry can't be read: {text}") from error

    def _load(self) -> Registry | None:
        store = self._store or self._open()
        digest = self._read(store)
        while digest != self._digest:
            time.sleep(self._settle_s)
            again = self._read(store)
            if again == digest:
                break
            digest = again
        else:
            return None
        registry = _Builder(store).build()
        self._store, self._digest = store, digest
        return registry

    def _open(self) -> FeatureStore:
        yaml = self._path / "feature_store.yaml"
        if not yaml.is_file():
            raise RegistryError(f"{yaml} does not exist")
        config = load_repo_config(self._path, yaml)
        registry = config.registry
        if registry.registry_type == "file" and "://" not in str(registry.path):
            # Feast would write an empty registry here, and a reader must not write.
            file = self._path / registry.path
            if not file.is_file():
                raise RegistryError(f"{file} does not exist; `feast apply` makes it")
        if config.online_store is None or config.online_store.type != "redis":
            raise RegistryError(f"{yaml}: online_store must be of type redis")
        if config.entity_key_serialization_version != 3:
            raise RegistryError(f"{yaml}: entity_key_serialization_version must be 3")
        store = FeatureStore(repo_path=str(self._path))
        # Otherwise each lookup stats the file and may read it anew, in the middle of a build.
        vars(store.registry)["cache_mode"] = "thread"
        return store

    @staticmethod
    def _read(store: FeatureStore) -> bytes:
        store.registry.refresh(store.project)
        proto = store.registry.proto()
        if not any(project.spec.name == store.project for project in proto.projects):
            raise RegistryError(f"the registry has no project {store.project!r}")
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).digest()


class _Builder:
    """Turns Feast's objects into definitions."""

    def __init__(self, store: FeatureStore) -> None:
        self._registry: Any = store.registry
        self._project: str = store.project
        self._versioned = bool(getattr(store.registry, "enable_online_versioning", False))
        self._entities = {
            e.name: e for e in self._registry.list_entities(self._project, allow_cache=True)
        }
        self._hashes: dict[str, str] = {}

    def build(self) -> Registry:
        services: dict[str, FeatureService] = {}
        broken: dict[str, str] = {}
        for service in self._registry.list_feature_services(self._project, allow_cache=True):
            try:
                services[service.name] = self._service(service)
            except Exception as error:  # noqa: BLE001 - one bad service must not stop the others
                broken[service.name] = f"{type(error).__name__}: {error}"[:500]
                log.warning(
                    "feature service can't be served",
                    extra={"feature_service": service.name, "why": broken[service.name]},
                )
        pushes = self._push_sources()
        version = version_hash(
            {
                "project": self._project,
                "services": {
                    name: [
                        s.versions,
                        [(o.view, o.field.name, int(o.tags.data_class)) for o in s.outputs],
                    ]
                    for name, s in services.items()
                },
                "broken": sorted(broken),
                "push": sorted(pushes),
            }
        )
        origins, schemas = self._origins(), self._schemas()
        return Registry(
            *(version, self._project, services, broken, pushes, origins, schemas),
            materialized=self._materialized(),
        )

    def _service(self, service: Any) -> FeatureService:
        refs, on_demand_views, _, key_types, _, grouped, *_ = utils._get_online_request_context(  # noqa: SLF001
            self._registry, self._project, service, full_feature_names=True
        )
        reads, tags, versions = [], [], []
        for table, names in grouped:
            if isinstance(table, OnDemandFeatureView):
                raise TypeError(
                    f"on-demand view {table.name!r} is written to the online store; "
                    "that is not supported, make it a feature view with a push source"
                )
            read, read_tags_ = self._read(table, set(names), key_types)
            reads.append(read)
            tags.append(read_tags_)
            versions.append((read.name, self._hash(table)))
        places = {
            f"{read.name}:{field.name}": (number, position)
            for number, read in enumerate(reads)
            for position, field in enumerate(read.features)
        }
        demands, requests = [], {}
        demand_tags: dict[str, Tags] = {}
        for view in on_demand_views:
            demand = self._on_demand(view, reads)
            demands.append(demand)
            versions.append((demand.name, self._hash(view)))
            own = read_tags(view.tags, _complain(view.name))
            inputs = [tags[i.read][i.feature].data_class for i in demand.inputs]
            for source in view.source_request_sources.values():
                for field in source.schema:
                    requests[field.name] = _field(field)
                    inputs.append(read_tags(field.tags, _complain(field.name)).data_class)
            # A derived value is as secret as what it is derived from, unless its author says.
            fallback = Tags(max(inputs, default=DataClass.UNSPECIFIED), "")
            demand_tags[demand.name] = refine(fallback, own)
        outputs = [self._output(ref, reads, tags, places, demands, demand_tags) for ref in refs]
        strictest = max(
            [read_tags(service.tags, _complain(service.name)).data_class]
            + [field.data_class for read_fields in tags for field in read_fields]
            + [output.tags.data_class for output in outputs]
        )
        keys = {
            part.column: Field(part.column, part.value_type)
            for read in reads
            for part in read.key
            if part.column
        }
        return FeatureService(
            name=service.name,
            join_keys=tuple(keys.values()),
            request_fields=tuple(requests.values()),
            reads=tuple(reads),
            on_demand=tuple(demands),
            outputs=tuple(outputs),
            versions=tuple(versions),
            data_class=strictest,
        )

    def _read(
        self, view: Any, names: set[str], key_types: Mapping[str, ValueType]
    ) -> tuple[ViewRead, list[Tags]]:
        projection = view.projection
        fields = [f for f in projection.features if f.name in names]
        own = read_tags(view.tags, _complain(view.name))
        tags = [refine(own, read_tags(f.tags, _complain(f"{view.name}:{f.name}"))) for f in fields]
        stored_as = view.name
        number = projection.version_tag
        number = view.current_version_number if number is None else number
        if self._versioned and number:
            stored_as = f"{view.name}_v{number}"
        read = ViewRead(
            name=projection.name_to_use(),
            stored_as=stored_as,
            key=self._key(view, key_types),
            features=tuple(_field(f) for f in fields),
            ttl_us=int(view.ttl.total_seconds() * 1_000_000) if view.ttl else 0,
            view=view.name,
        )
        return read, tags

    def _key(
        self, view: Any, key_types: Mapping[str, ValueType] | None = None
    ) -> tuple[KeyPart, ...]:
        """Return the stored key's parts, sorted by name as Feast stores them."""
        types = key_types or {c.name: c.dtype.to_value_type() for c in view.entity_columns}
        parts = []
        for entity in view.entities:
            name = self._entities[entity].join_key
            if name == DUMMY_ENTITY_ID:
                parts.append(KeyPart(name, "", "STRING"))
                continue
            column = view.projection.join_key_map.get(name, name) if key_types else name
            parts.append(KeyPart(name, column, types[column].name))
        return tuple(sorted(parts, key=lambda part: part.name))

    def _on_demand(self, view: Any, reads: list[ViewRead]) -> OnDemandView:
        if view.aggregations:
            raise TypeError(f"on-demand view {view.name!r} aggregates; that is not supported")
        declared = {
            projection.name: {feature.name for feature in projection.features}
            for projection in view.source_feature_view_projections.values()
        }
        mode = str(getattr(view.mode, "value", view.mode))
        # On Arrow's way Feast adds the full names by itself.
        inputs = [
            Input(
                number,
                position,
                (field.name, f"{read.name}__{field.name}")
                if mode == "python" and field.name in declared[read.name]
                else (field.name,),
                field.value_type,
            )
            for number, read in enumerate(reads)
            if read.name in declared
            for position, field in enumerate(read.features)
        ]
        return OnDemandView(
            name=view.projection.name_to_use(),
            inputs=tuple(inputs),
            outputs=tuple(_field(f) for f in view.projection.features),
            singleton=bool(view.singleton) and mode == "python",
            native=mode == "python",
            compute=view.feature_transformation.udf if mode == "python" else _on_arrow(view),
        )

    @staticmethod
    def _output(
        ref: str,
        reads: list[ViewRead],
        tags: list[list[Tags]],
        places: Mapping[str, tuple[int, int]],
        demands: list[OnDemandView],
        demand_tags: Mapping[str, Tags],
    ) -> Output:
        view, _, name = ref.partition(":")
        place = places.get(ref)
        for number, demand in enumerate(demands):
            if demand.name == view and (view not in {r.name for r in reads}):
                position = next(i for i, f in enumerate(demand.outputs) if f.name == name)
                field = demand.outputs[position]
                return Output(view, field, demand_tags[view], 0, None, (number, position))
        if place is None:
            raise KeyError(ref)
        read = reads[place[0]]
        own = tags[place[0]][place[1]]
        return Output(view, read.features[place[1]], own, read.ttl_us, place, None)

    def _hash(self, view: Any) -> str:
        """Return the version hash of a view as it was applied, whoever projects it."""
        found = self._hashes.get(view.name)
        if found is None:
            found = self._hashes[view.name] = version_hash(self._definition(view))
        return found

    def _definition(self, view: Any) -> dict[str, Any]:
        schema = sorted((f.name, f.dtype.to_value_type().name) for f in view.features)
        if isinstance(view, OnDemandFeatureView):
            sources = {
                p.name: self._hash(
                    self._registry.get_any_feature_view(p.name, self._project, allow_cache=True)
                )
                for p in view.source_feature_view_projections.values()
            }
            request = {name: kind.name for name, kind in view.get_request_data_schema().items()}
            code = view.feature_transformation.udf_string if view.feature_transformation else ""
            return {
                "name": view.name,
                "schema": schema,
                "sources": sources,
                "request": request,
                "mode": str(getattr(view.mode, "value", view.mode)),
                "singleton": bool(view.singleton),
                "code": code,
            }
        return {
            "name": view.name,
            "schema": schema,
            "keys": [(part.name, part.value_type) for part in self._key(view)],
            "ttl": view.ttl.total_seconds() if view.ttl else 0,
            "source": source_text(view.batch_source),
            "stream": source_text(view.stream_source),
        }

    def _origins(self) -> dict[str, Origin]:
        found = {}
        for view in self._registry.list_feature_views(self._project, allow_cache=True):
            sources = [s for s in (view.batch_source, view.stream_source) if s is not None]
            words = tuple(source_words(source) for source in sources)
            found[view.name] = Origin(view.name, self._hash(view), words, ())
        for view in self._registry.list_on_demand_feature_views(self._project, allow_cache=True):
            words = tuple(f"RequestSource {name}" for name in view.source_request_sources)
            inputs = tuple(p.name for p in view.source_feature_view_projections.values())
            found[view.name] = Origin(view.name, self._hash(view), words, inputs)
        return found

    def _schemas(self) -> dict[str, dict[str, str]]:
        views = [
            *self._registry.list_feature_views(self._project, allow_cache=True),
            *self._registry.list_on_demand_feature_views(self._project, allow_cache=True),
        ]
        fields = {view.name: map(_field, view.features) for view in views}
        return {name: {f.name: f.value_type for f in given} for name, given in fields.items()}

    def _materialized(self) -> dict[str, int]:
        return {
            view.name: max(
                int(until.timestamp() * 1e6) for _, until in view.materialization_intervals
            )
            for view in self._registry.list_feature_views(self._project, allow_cache=True)
            if view.materialization_intervals
        }

    def _push_sources(self) -> dict[str, PushSource]:
        found: dict[str, tuple[Any, list[PushView]]] = {}
        for view in self._registry.list_feature_views(self._project, allow_cache=True):
            source = view.stream_source
            if not isinstance(source, FeastPushSource) or not view.online:
                continue
            batch = view.batch_source
            column_of = {feature: column for column, feature in batch.field_mapping.items()}
            features = tuple((column_of.get(f.name, f.name), _field(f)) for f in view.features)
            key = tuple(
                KeyPart(part.name, column_of.get(part.column, part.column), part.value_type)
                if part.name != DUMMY_ENTITY_ID
                else KeyPart(part.name, "", "STRING")
                for part in self._key(view)
            )
            found.setdefault(source.name, (batch, []))[1].append(PushView(view.name, key, features))
        return {
            name: PushSource(
                name, batch.timestamp_field, batch.created_timestamp_column or "", tuple(views)
            )
            for name, (batch, views) in found.items()
        }


def _field(field: Any) -> Field:
    return Field(field.name, field.dtype.to_value_type().name)


def _complain(where: str) -> Callable[[str], None]:
    return lambda text: log.warning("tag", extra={"where": where, "why": text})


def _on_arrow(view: OnDemandFeatureView) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """Return Feast's own way through Arrow, for views in pandas or substrait mode."""

    def compute(columns: dict[str, Any]) -> Mapping[str, Any]:
        table = view.transform_arrow(pa.Table.from_pydict(columns), full_feature_names=False)
        return {name: table[name].to_numpy() for name in table.column_names}

    return compute
