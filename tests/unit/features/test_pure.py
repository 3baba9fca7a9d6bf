"""Freshness, tags, lineage, keys, URLs: the parts without I/O."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.features import freshness, lineage
from services.features.definitions import (
    DataClass,
    Field,
    KeyPart,
    OnDemandView,
    Status,
    Tags,
    ViewRead,
    read_tags,
    refine,
)
from services.features.keys import group_reads, hmget_fields, key_encoder
from services.features.online import check_url
from services.features.transform import run
from twinpath.common.v1 import context_pb2, decision_pb2

TTL = 1_000_000


@pytest.mark.parametrize(
    ("event", "any_value", "ttl", "expected"),
    [
        (5_000_000, True, TTL, Status.PRESENT),
        (4_000_000, True, TTL, Status.PRESENT),
        (3_999_999, True, TTL, Status.STALE),
        (9_000_000, True, TTL, Status.PRESENT),
        (0, True, 0, Status.PRESENT),
        (0, False, TTL, Status.STALE),
        (None, False, TTL, Status.ABSENT_ENTITY),
        (None, False, 0, Status.ABSENT_ENTITY),
        (None, True, TTL, Status.STALE),
        (None, True, 0, Status.PRESENT),
    ],
)
def test_a_rows_freshness(event: int | None, any_value: bool, ttl: int, expected: Status) -> None:
    """Older than ttl is stale, exactly ttl is not; without ttl nothing is; no row is no entity."""
    found = freshness.row_status(event, any_value=any_value, ttl_us=ttl, now_us=5_000_000)
    assert found is expected


@settings(deadline=None)
@given(st.lists(st.sampled_from([None, b"", b"x"]), max_size=8), st.data())
def test_a_columns_statuses(raw: list[bytes | None], data: st.DataObject) -> None:
    """No row beats all; then no value, then null, then the row's own freshness."""
    rows = [
        data.draw(st.sampled_from([Status.PRESENT, Status.STALE, Status.ABSENT_ENTITY]))
        for _ in raw
    ]
    found = list(freshness.column_statuses(raw, rows))
    for value, row, status in zip(raw, rows, found, strict=True):
        if value == b"x" or row is Status.ABSENT_ENTITY:
            assert status is row
        else:
            assert status is (Status.ABSENT_FEATURE if value is None else Status.NULL)


def test_the_numbers_are_the_contracts() -> None:
    """Statuses and data classes have the numbers of the contract."""
    for status in Status:
        assert decision_pb2.FeatureStatus.Value(f"FEATURE_STATUS_{status.name}") == status
    for data_class in DataClass:
        assert context_pb2.DataClass.Value(f"DATA_CLASS_{data_class.name}") == data_class


def test_an_unknown_data_class_is_restricted_and_complained_about() -> None:
    """Fail closed: a typing mistake must not open the door."""
    complaints: list[str] = []
    assert read_tags({"data_class": "intrenal"}, complaints.append).data_class == 4
    assert complaints
    complaints.clear()
    assert read_tags({"data_class": " Internal "}, complaints.append).data_class == 2
    assert read_tags({"data_class": "unspecified"}, complaints.append).data_class == 4
    assert read_tags({}, complaints.append) == Tags()
    assert len(complaints) == 1


def test_a_fields_tag_beats_its_views() -> None:
    """Each of the two tags by itself."""
    view = Tags(DataClass.RESTRICTED, "health")
    assert refine(view, Tags(DataClass.PUBLIC, "")) == Tags(DataClass.PUBLIC, "health")
    assert refine(view, Tags()) == view


def test_a_version_hash_follows_content_not_order() -> None:
    """Equal definitions have equal hashes; a changed one has another."""
    one = lineage.version_hash({"a": 1, "b": [("x", "y")]})
    assert one == lineage.version_hash({"b": [["x", "y"]], "a": 1})
    assert one != lineage.version_hash({"a": 2, "b": [("x", "y")]})
    assert len(one) >= 16


def test_views_with_one_key_share_a_command() -> None:
    """Feast keeps views of one entity in one hash; another key is another command."""
    user = (KeyPart("user", "user", "INT64"),)
    other = (KeyPart("user", "friend", "INT64"),)
    reads = [
        ViewRead("a", "a", user, (Field("x", "INT64"), Field("y", "INT64")), 0),
        ViewRead("b", "b", other, (Field("x", "INT64"),), 0),
        ViewRead("c", "c", user, (Field("z", "INT64"),), 0),
    ]
    groups, slices = group_reads(reads, "p")
    assert [len(g.fields.names) for g in groups] == [5, 2]
    assert [(s.group, s.start, s.time) for s in slices] == [(0, 0, 2), (1, 0, 1), (0, 3, 4)]
    assert groups[0].encode({"user": [1], "friend": [2]}, 1) == groups[1].encode({"friend": [1]}, 1)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.binary(max_size=40))
def test_packed_commands_are_what_redis_py_packs(names: list[bytes], key: bytes) -> None:
    """The prepared command equals the one that redis-py would send."""
    from redis._parsers.encoders import Encoder
    from redis.connection import PythonRespSerializer

    packer = PythonRespSerializer(6000, Encoder("utf-8", "strict", False).encode)
    expected = b"".join(packer.pack("HMGET", key, *names))
    assert hmget_fields(names).command(key) == expected


def test_a_join_key_of_a_type_that_feast_cant_store_is_refused() -> None:
    """It is found when the registry is prepared, not when a row is asked for."""
    with pytest.raises(TypeError, match="DOUBLE"):
        key_encoder([KeyPart("a", "a", "DOUBLE")], "p")


@pytest.mark.parametrize(
    "url", ["http://x", "redis://", "redis://a:b", "redis://h:1/x", "redis://,h:1"]
)
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    """At start, not at the first read."""
    with pytest.raises(ValueError):
        check_url(url)


def view(compute: object, *, singleton: bool = False, kind: str = "DOUBLE") -> OnDemandView:
    """An on-demand view with one output."""
    return OnDemandView("v", (), (Field("out", kind),), singleton, True, compute)  # type: ignore[arg-type]


def test_a_row_that_a_function_fails_on_fails_alone() -> None:
    """The others have their values."""
    made = run(view(lambda x: {"out": [a * 2 for a in x["a"]]}), {"a": [1.0, None, 3.0]}, 3)
    assert made.columns == [[2.0, None, 6.0]]
    assert list(made.failed) == [1]


def test_a_singleton_is_computed_for_each_row() -> None:
    """Feast computes only the first of several rows; here each has its own."""
    made = run(view(lambda x: {"out": x["a"] * 2}, singleton=True), {"a": [1.0, 2.0]}, 2)
    assert made.columns == [[2.0, 4.0]]
    nested = view(lambda x: {"out": [[x["a"], 1.0]]}, singleton=True, kind="DOUBLE_LIST")
    assert run(nested, {"a": [5.0]}, 1).columns == [[[5.0, 1.0]]]


def test_a_function_that_gives_too_few_values_fails() -> None:
    """A column of the wrong length would shift values between people."""
    made = run(view(lambda x: {"out": x["a"][:1]}), {"a": [1.0, 2.0]}, 2)
    assert made.failed or made.columns == [[1.0, 2.0]]
    short = run(view(lambda _: {"out": [1.0, 2.0, 3.0]}), {"a": [1.0, 2.0]}, 2)
    assert set(short.failed) == {0, 1}


def test_an_output_that_is_not_given_is_missing() -> None:
    """It is told apart from one that is null."""
    assert run(view(lambda _: {}), {"a": [1.0]}, 1).missing == {0}
