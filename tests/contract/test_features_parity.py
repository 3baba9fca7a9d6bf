"""Parity: raw values and event times are what `FeatureStore.get_online_features` gives.

Repos, rows and requests are generated. Feast writes the rows with its own code; then Feast and
the feature service read the same store. Freshness is ours and is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import math
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.chassis.clock import SystemClock
from services.cli.embedded.valkey import Valkey
from services.features import store
from services.features.coalescer import Coalescer
from services.features.online import OnlineStore
from services.features.prepared import Live
from services.features.push import Pusher
from services.features.servicer import FeaturesServicer
from tests.unit.features import feast_repo

pytestmark = pytest.mark.integration

from feast import Entity, FeatureService, FeatureView, Field, RequestSource, ValueType  # noqa: E402
from feast import types as ft  # noqa: E402
from feast.on_demand_feature_view import on_demand_feature_view  # noqa: E402
from feast.protos.feast.types import Value_pb2 as fv  # noqa: E402

NAT = -(2**63)
START = datetime(2024, 1, 1, tzinfo=UTC)

ints32 = st.integers(-(2**31), 2**31 - 1)
ints64 = st.integers(-(2**63), 2**63 - 1)
doubles = st.floats(width=64)
floats = st.floats(width=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
blobs = st.binary(max_size=200)
times = st.integers(-(10**10), 10**10) | st.just(NAT)
uuids = st.uuids().map(str)
decimals = st.decimals(allow_nan=False, allow_infinity=False).map(str)
jsons = st.sampled_from(['{"a": 1}', "[1, 2]", '"x"', "null"])
maps = st.dictionaries(texts, doubles.map(lambda v: fv.Value(double_val=v)), max_size=3)


def scalar(field: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Feast values of one kind."""
    return values.map(lambda v: fv.Value(**{field: v}))


def many(field: str, kind: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Feast values that hold several of one kind."""
    return st.lists(values, max_size=4).map(lambda v: fv.Value(**{field: kind(val=v)}))


SCALARS = {
    "int32": (ft.Int32, ints32, fv.Int32List, fv.Int32Set),
    "int64": (ft.Int64, ints64, fv.Int64List, fv.Int64Set),
    "double": (ft.Float64, doubles, fv.DoubleList, fv.DoubleSet),
    "float": (ft.Float32, floats, fv.FloatList, fv.FloatSet),
    "bool": (ft.Bool, st.booleans(), fv.BoolList, fv.BoolSet),
    "string": (ft.String, texts, fv.StringList, fv.StringSet),
    "bytes": (ft.Bytes, blobs, fv.BytesList, fv.BytesSet),
    "unix_timestamp": (ft.UnixTimestamp, times, fv.Int64List, fv.Int64Set),
    "uuid": (ft.Uuid, uuids, fv.StringList, fv.StringSet),
    "decimal": (ft.Decimal, decimals, fv.StringList, fv.StringSet),
}
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {}
for _name, (_type, _values, _list, _set) in SCALARS.items():
    KINDS[_name] = (_type, scalar(f"{_name}_val", _values))
    KINDS[f"{_name}_list"] = (ft.Array(_type), many(f"{_name}_list_val", _list, _values))
    KINDS[f"{_name}_set"] = (ft.Set(_type), many(f"{_name}_set_val", _set, _values))
KINDS["json"] = (ft.Json, scalar("json_val", jsons))
KINDS["map"] = (ft.Map, maps.map(lambda m: fv.Value(map_val=fv.Map(val=m))))
KINDS["map_list"] = (
    ft.Array(ft.Map),
    st.lists(maps, max_size=2).map(
        lambda items: fv.Value(map_list_val=fv.MapList(val=[fv.Map(val=m) for m in items]))
    ),
)
KINDS["nested"] = (
    ft.Array(ft.Array(ft.Float64)),
    st.lists(st.lists(doubles, max_size=3), max_size=3).map(
        lambda rows: fv.Value(
            list_val=fv.RepeatedValue(
                val=[fv.Value(double_list_val=fv.DoubleList(val=r)) for r in rows]
            )
        )
    ),
)
KINDS["zoned"] = (
    ft.ZonedTimestamp,
    st.builds(
        lambda t, z: fv.Value(zoned_timestamp_val=fv.ZonedTimestamp(unix_timestamp=t, zone=z)),
        st.integers(0, 10**10),
        st.sampled_from(["", "Europe/Berlin"]),
    ),
)
KINDS["pdf"] = (ft.PdfBytes, scalar("bytes_val", blobs))

# Few different values, so that rows are found; entities of one name may differ in their views.
KEYS: dict[str, tuple[Any, str, list[Any]]] = {
    "k_int64": (ValueType.INT64, "int64_val", [0, 1, -1, 2**63 - 1]),
    "k_int32": (ValueType.INT32, "int32_val", [0, 7, -(2**31)]),
    "k_string": (ValueType.STRING, "string_val", ["a", "ä€", "x" * 300]),
    "k_bytes": (ValueType.BYTES, "bytes_val", [b"\x00", b"ab\xff"]),
    "k_time": (
        ValueType.UNIX_TIMESTAMP,
        "unix_timestamp_val",
        [START, START - timedelta(days=40_000)],
    ),
}


def key_value(name: str, value: Any) -> fv.Value:
    """Return a key as it is stored."""
    _, field, _ = KEYS[name]
    stored = int(value.timestamp()) if isinstance(value, datetime) else value
    return fv.Value(**{field: stored})


@dataclass
class World:
    """A Valkey and the parts of a service, on a loop of their own."""

    folder: Path
    server: Valkey
    online: OnlineStore
    runner: asyncio.Runner
    repos: int = 0

    def repo(self) -> feast_repo.Repo:
        """An empty repo, with a project of its own so that rows of others don't show."""
        self.repos += 1
        name = f"p{self.repos}"
        return feast_repo.Repo(self.folder / name, self.server.address, name)

    def reader(self, repo: feast_repo.Repo) -> FeaturesServicer:
        """The service over a repo."""
        live = Live(store.FeastRepo(repo.folder, settle_s=0.0), 1.0)
        assert self.runner.run(live.refresh()), live.problem
        coalescer = Coalescer(self.online.fetch, max_keys=512)
        pusher = Pusher(self.online, store)
        return FeaturesServicer(
            live, self.online, coalescer, store, SystemClock(), pusher, share_up_to=64
        )

    def read(self, reader: FeaturesServicer, request: Any) -> Any:
        """Call it."""
        return self.runner.run(reader.GetFeatures(request, None))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One Valkey for all examples."""
    folder = tmp_path_factory.mktemp("parity")
    with asyncio.Runner() as runner:
        server = Valkey("features", folder / "valkey")
        runner.run(server.start())
        online = OnlineStore(server.url, "standalone", "", 5.0)
        try:
            yield World(folder, server, online, runner)
        finally:
            runner.run(online.close())
            runner.run(server.stop())


@st.composite
def shapes(draw: st.DrawFn) -> list[tuple[list[str], dict[str, str]]]:
    """Views of a repo: the join keys of each, and the kinds of its features."""
    views = []
    for _ in range(draw(st.integers(1, 3))):
        keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True))
        kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=12))
        views.append((keys, {f"f{n}_{kind}": kind for n, kind in enumerate(kinds)}))
    return views


def build(repo: feast_repo.Repo, shape: list[tuple[list[str], dict[str, str]]]) -> FeatureService:
    """Apply a repo of this shape."""
    entities = {
        name: Entity(name=f"e_{name}", join_keys=[name], value_type=kind)
        for name, (kind, _, _) in KEYS.items()
    }
    views = [
        FeatureView(
            name=f"v{number}",
            entities=[entities[key] for key in keys],
            ttl=timedelta(days=number),
            schema=[Field(name=name, dtype=KINDS[kind][0]) for name, kind in kinds.items()],
            source=feast_repo.file_source(f"s{number}"),
        )
        for number, (keys, kinds) in enumerate(shape)
    ]
    service = FeatureService(name="all", features=views)
    repo.apply(*entities.values(), *views, service)
    return repo.feast.get_feature_service("all")


def write_rows(draw: Any, repo: feast_repo.Repo, shape: Any) -> None:
    """Write rows for some entities: partial ones, nulls, and values of other kinds."""
    for number, (keys, kinds) in enumerate(shape):
        table = repo.feast.get_feature_view(f"v{number}")
        rows = []
        for _ in range(draw(st.integers(0, 4))):
            chosen = {k: key_value(k, draw(st.sampled_from(KEYS[k][2]))) for k in keys}
            values = {}
            for name, kind in kinds.items():
                fate = draw(st.integers(0, 11))
                if fate == 0:
                    continue
                stranger = draw(st.sampled_from(sorted(KINDS))) if fate == 1 else kind
                values[name] = fv.Value() if fate == 2 else draw(KINDS[stranger][1])
            when = START + timedelta(microseconds=draw(st.integers(0, 10**15)))
            entity = feast_entity(chosen)
            rows.append((entity, values, when, None))
        if rows:
            repo.feast._provider.online_write_batch(repo.feast.config, table, rows, None)


def feast_entity(chosen: dict[str, fv.Value]) -> Any:
    """Return a stored key."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    return EntityKey(join_keys=list(chosen), entity_values=list(chosen.values()))


def bits(value: float) -> Any:
    """Return what tells floats apart, NaN and -0.0 too."""
    return ("float", "nan" if math.isnan(value) else struct.pack("<d", value))


def from_feast(value: fv.Value) -> Any:
    """Return a Feast value as plain Python: written apart from the product's own conversion."""
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    held = getattr(value, kind)
    if kind in ("map_val", "struct_val"):
        return [[k, from_feast(held.val[k])] for k in sorted(held.val)]
    if kind == "map_list_val":
        return [[[k, from_feast(m.val[k])] for k in sorted(m.val)] for m in held.val]
    if kind in ("list_val", "set_val"):
        return [from_feast(item) for item in held.val]
    if kind == "zoned_timestamp_val":
        return [("time", held.unix_timestamp * 1_000_000), held.zone]
    time = kind.startswith("unix_timestamp")
    if hasattr(held, "val"):
        return [plain(item, time=time) for item in held.val]
    return plain(held, time=time)


def plain(value: Any, *, time: bool = False) -> Any:
    """Return a scalar so that == compares what matters."""
    if time:
        return None if value == NAT else ("time", value * 1_000_000)
    if isinstance(value, bool):
        return ("bool", value)
    return bits(value) if isinstance(value, float) else value


def from_value(value: Any) -> Any:
    """Return a contract's Value as plain Python."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "list_value":
        return [from_value(item) for item in value.list_value.values]
    if kind == "unix_time_us":
        return ("time", value.unix_time_us)
    return plain(getattr(value, kind))


def from_column(column: Any, rows: int) -> list[Any]:
    """Return a contract's FeatureColumn as plain Python; null where the status says so."""
    array = column.values.WhichOneof("values")
    if array is None:
        found = [None] * rows
    elif array == "mixed":
        found = [from_value(v) for v in column.values.mixed.values]
    elif array == "unix_times_us":
        found = [("time", v) for v in column.values.unix_times_us.values]
    else:
        found = [plain(v) for v in getattr(column.values, array).values]
    assert len(found) == len(column.statuses) == rows
    return [v if s in (1, 2) else None for v, s in zip(found, column.statuses, strict=True)]


def compare(feast: Any, answer: Any, *, full: bool = True) -> None:
    """Compare Feast's answer with ours."""
    names = list(feast.proto.metadata.feature_names.val)
    for column in answer.columns:
        name = column.values.name if full else column.feature
        result = feast.proto.results[names.index(name)]
        rows = len(result.values)
        expected = [from_feast(v) for v in result.values]
        found = from_column(column, rows)
        assert found == expected, name
        when = [t.seconds * 1_000_000 + t.nanos // 1000 for t in result.event_timestamps]
        assert list(column.event_times_unix_us) == when, name
    assert not [row for row in answer.rows if row.status.code], answer.rows


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking repos takes for ever
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_stored_features_equal_feasts(world: World, data: st.DataObject) -> None:
    """For any repo, rows and request: same values, same event times, same nulls."""
    shape = data.draw(shapes())
    repo = world.repo()
    service = build(repo, shape)
    write_rows(data.draw, repo, shape)
    reader = world.reader(repo)
    names = sorted({key for keys, _ in shape for key in keys})
    for _ in range(3):
        rows = data.draw(st.integers(1, 6))
        columns = {
            name: [data.draw(st.sampled_from(KEYS[name][2])) for _ in range(rows)] for name in names
        }
        expected = repo.feast.get_online_features(
            features=service, entity_rows=columns, full_feature_names=True
        )
        compare(expected, world.read(reader, feast_repo.request("all", columns)))


numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@pytest.fixture(scope="module")
def computed(world: World) -> tuple[feast_repo.Repo, FeaturesServicer]:
    """A repo with on-demand views of every mode and of awkward outputs."""
    repo = world.repo()
    person = Entity(name="person", join_keys=["person_id"], value_type=ValueType.INT64)
    body = FeatureView(
        name="body",
        entities=[person],
        ttl=timedelta(days=1),
        schema=[
            Field(name="weight", dtype=ft.Float64),
            Field(name="height", dtype=ft.Float32),
            Field(name="visits", dtype=ft.Int64),
            Field(name="name", dtype=ft.String),
            Field(name="seen", dtype=ft.UnixTimestamp),
            Field(name="marks", dtype=ft.Array(ft.Float64)),
        ],
        source=feast_repo.file_source("body"),
    )
    other = FeatureView(
        name="other",
        entities=[person],
        schema=[Field(name="secret", dtype=ft.Float64)],
        source=feast_repo.file_source("other"),
    )
    ask = RequestSource(
        name="ask",
        schema=[Field(name="now", dtype=ft.Float64), Field(name="label", dtype=ft.String)],
    )

    @on_demand_feature_view(
        sources=[body, ask],
        mode="python",
        schema=[
            Field(name="gain", dtype=ft.Float64),
            Field(name="whole", dtype=ft.Int64),
            Field(name="greeting", dtype=ft.String),
            Field(name="heavy", dtype=ft.Bool),
            Field(name="pair", dtype=ft.Array(ft.Float64)),
            Field(name="echo_seen", dtype=ft.UnixTimestamp),
            Field(name="fields", dtype=ft.String),
            Field(name="who", dtype=ft.Int64),
        ],
    )
    def columns_view(inputs: dict[str, Any]) -> dict[str, Any]:
        rows = range(len(inputs["now"]))
        weight = [0.0 if w is None else w for w in inputs["weight"]]
        now = [1.0 if w is None else w for w in inputs["now"]]
        return {
            "gain": [n - w for n, w in zip(now, weight, strict=True)],
            "whole": [v if v is None else v // 2 for v in inputs["visits"]],
            "greeting": [f"{a} {b}" for a, b in zip(inputs["label"], inputs["name"], strict=True)],
            "heavy": [w > 1.0 for w in weight],
            "pair": [[w, 2.0] for w in weight],
            "echo_seen": inputs["seen"],
            # Feast's Redis store leaks its internal time columns into views; ours does not.
            "fields": [" ".join(sorted(n for n in inputs if n[:4] != "_ts:")) for _ in rows],
            "who": inputs.get("person_id", [0]),  # not there when Feast infers
        }

    @on_demand_feature_view(
        sources=[body, ask],
        mode="python",
        singleton=True,
        schema=[Field(name="one_gain", dtype=ft.Float64), Field(name="one_text", dtype=ft.String)],
    )
    def singleton_view(inputs: dict[str, Any]) -> dict[str, Any]:
        weight = inputs["weight"]
        return {
            "one_gain": None if weight is None else weight * 2,
            "one_text": f"{inputs['label']} {inputs['body__name']}",
        }

    @on_demand_feature_view(
        sources=[body, ask],
        mode="pandas",
        schema=[Field(name="pd_gain", dtype=ft.Float64), Field(name="pd_visits", dtype=ft.Int64)],
    )
    def pandas_view(df):
        import pandas as pd

        out = pd.DataFrame()
        out["pd_gain"] = df["now"].astype("float64") - df["weight"].astype("float64")
        out["pd_visits"] = df["visits"].fillna(0).astype("int64")
        return out

    views = (columns_view, singleton_view, pandas_view)
    services = [
        FeatureService(name="columns", features=[body, other, columns_view]),
        FeatureService(name="computed_only", features=[columns_view[["gain", "fields"]]]),
        FeatureService(name="singleton", features=[singleton_view, body[["visits"]]]),
        FeatureService(name="pandas", features=[body[["weight"]], pandas_view]),
    ]
    repo.apply(person, body, other, ask, *views, *services)
    return repo, world.reader(repo)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, fv.Value]:
    """A row of the view `body`, perhaps partial."""
    made = {
        "weight": draw(scalar("double_val", doubles)),
        "height": draw(scalar("float_val", floats)),
        "visits": draw(scalar("int64_val", ints64)),
        "name": draw(scalar("string_val", texts)),
        "seen": draw(scalar("unix_timestamp_val", st.integers(0, 10**10))),
        "marks": draw(many("double_list_val", fv.DoubleList, doubles)),
    }
    for name in draw(st.sets(st.sampled_from(sorted(made)), max_size=2)):
        made[name] = fv.Value()
    return made


@settings(
    max_examples=80,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking repos takes for ever
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.parametrize("name", ["columns", "computed_only", "singleton", "pandas"])
def test_computed_features_equal_feasts(
    world: World,
    computed: tuple[feast_repo.Repo, FeaturesServicer],
    name: str,
    data: st.DataObject,
) -> None:
    """On-demand views see and give what they see and give in Feast."""
    repo, reader = computed
    base = uuid.uuid4().int % 2**40
    for offset in range(data.draw(st.integers(0, 3))):
        key = {"person_id": fv.Value(int64_val=base + offset)}
        repo.write("body", key, data.draw(bodies()), START)
        repo.write("other", key, {"secret": fv.Value(double_val=1.0)}, START)
    # Feast keeps only the first of several rows of a singleton; ours computes each.
    rows = 1 if name == "singleton" else data.draw(st.integers(1, 4))
    ids = [base + data.draw(st.integers(0, 4)) for _ in range(rows)]
    request = {
        "now": [data.draw(st.floats(-1e6, 1e6)) for _ in range(rows)],
        "label": [data.draw(texts) for _ in range(rows)],
    }
    service = repo.feast.get_feature_service(name)
    expected = repo.feast.get_online_features(
        features=service, entity_rows={"person_id": ids, **request}
    )
    answer = world.read(reader, feast_repo.request(name, {"person_id": ids}, request))
    compare(expected, answer, full=False)
