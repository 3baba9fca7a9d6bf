"""Samples of served vectors: what is kept, what is not, and that they stay bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from services.features.definitions import (
    DataClass,
    FeatureService,
    Field,
    KeyPart,
    Output,
    Registry,
    Tags,
    ViewRead,
)
from services.features.prepared import Prepared, prepare
from services.features.sampling import SUBJECT, Sampler, SamplingOptions, pseudonym
from twinpath.features.v1 import features_pb2

KEY = b"secret"


def prepared(data_class: DataClass = DataClass.INTERNAL) -> Prepared:
    """A feature service of one view."""
    key = (KeyPart("user", "user", "INT64"),)
    read = ViewRead("v", "v", key, (Field("x", "DOUBLE"),), 0)
    outputs = (Output("v", Field("x", "DOUBLE"), Tags(), 0, (0, 0), None),)
    keys = (Field("user", "INT64"),)
    service = FeatureService("s", keys, (), (read,), (), outputs, (), data_class)
    return prepare(Registry("1", "p", {"s": service})).services["s"]


def answer(rows: int = 1, bad: int = -1) -> Any:
    """What was served."""
    made = features_pb2.GetFeaturesResponse()
    column = made.columns.add(view="v", feature="x")
    column.values.name = "v__x"
    for row in range(rows):
        column.values.doubles.values.append(row + 0.5)
        column.statuses.append(1 if row else 3)  # type: ignore[arg-type] # an int at run time
        column.event_times_unix_us.append(1_000_000)
        made.rows.add(id=f"id-{row}").status.code = 5 if row == bad else 0
    return made


def sampler(folder: Path, chance: float = 0.0, **options: Any) -> Sampler:
    """One that keeps all when the chance is below the share."""
    given: dict[str, Any] = {"share": 0.5, "files": 3, "key": KEY, **options}
    return Sampler(SamplingOptions(folder, **given), lambda: chance)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All that was written."""
    files = sorted((folder / "s").glob("*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


async def test_a_sample_holds_values_and_a_pseudonym_and_no_key(tmp_path: Path) -> None:
    """A null is a null, a row that failed is not kept, nor is any id of a row."""
    taken = sampler(tmp_path)
    taken.offer(prepared(), {"user": [123_456_789, 2, 3]}, answer(3, bad=2), 7)
    await taken.flush()
    first, second = rows(tmp_path)
    assert (first["v__x"], first["v__x.status"]) == (None, 3)
    assert (second["v__x"], second["v.event_time_unix_us"]) == (1.5, 1_000_000)
    assert first[SUBJECT] == pseudonym(KEY, {"user": 123_456_789})
    assert second[SUBJECT] != first[SUBJECT]
    assert "123456789" not in str(first)
    (file,) = (tmp_path / "s").iterdir()
    assert b"123456789" not in file.read_bytes()
    assert b"id-0" not in file.read_bytes()


@pytest.mark.parametrize(
    ("options", "service", "kept"),
    [
        ({"chance": 0.9}, prepared(), 0),
        ({}, prepared(DataClass.RESTRICTED), 0),
        ({"restricted": True}, prepared(DataClass.RESTRICTED), 1),
        ({"key": b""}, prepared(), 1),
    ],
)
async def test_what_is_not_meant_to_be_kept_is_not(
    tmp_path: Path, options: dict[str, Any], service: Prepared, kept: int
) -> None:
    """By chance; restricted only where allowed; no pseudonym without a key."""
    taken = sampler(tmp_path, **options)
    taken.offer(service, {"user": [1]}, answer(), 7)
    await taken.flush()
    found = rows(tmp_path)
    assert len(found) == kept
    if options.get("key") == b"":
        assert SUBJECT not in found[0]


async def test_samples_are_bounded(tmp_path: Path) -> None:
    """Rows of a call, calls that wait, and files, of which the oldest go."""
    taken = sampler(tmp_path)
    many = {"user": list(range(500))}
    taken.offer(prepared(), many, answer(500), 1)
    await taken.flush()
    assert len(rows(tmp_path)) == 100
    for number in range(2, 6):
        for _ in range(1_000):
            taken.offer(prepared(), {"user": [1]}, answer(), number)
        await taken.flush()
    files = sorted((tmp_path / "s").glob("*.parquet"))
    assert [int(file.name[:20]) for file in files] == [3, 4, 5]
    assert len(rows(tmp_path)) == 3 * 256


async def test_a_disk_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    """What could not be written is counted and forgotten."""
    (tmp_path / "file").write_text("no folder")
    taken = sampler(tmp_path / "file")
    taken.offer(prepared(), {"user": [1]}, answer(), 7)
    await taken.flush()
    await taken.flush()
