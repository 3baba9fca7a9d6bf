"""OpenLineage events: one for each registry and materialization, and sums of what was served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.chassis.clock import SystemClock
from services.features.definitions import (
    DataClass,
    FeatureService,
    Field,
    KeyPart,
    Origin,
    Registry,
    ViewRead,
)
from services.features.lineage_events import LineageEvents
from services.features.prepared import prepare

KEY = (KeyPart("user", "user", "INT64"),)
READ = ViewRead("v", "v", KEY, (Field("x", "DOUBLE"),), 0)
SERVICE = FeatureService(
    "s", (Field("user", "INT64"),), (), (READ,), (), (), (("v", "hash1"),), DataClass.UNSPECIFIED
)
REGISTRY = Registry(
    "1",
    "p",
    {"s": SERVICE},
    origins={"v": Origin("v", "hash1", ("FileSource v_file",), ())},
    schemas={"v": {"x": "DOUBLE"}},
    materialized={"v": 5},
)


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenLineage's own variables must not send a test's events somewhere."""
    for name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def events(file: Path) -> list[dict[str, Any]]:
    """What was emitted."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


async def test_each_registry_and_materialization_is_told_once(tmp_path: Path) -> None:
    """Whoever applied; what was materialized before this process is not its news."""
    file = tmp_path / "data" / "events.jsonl"
    told = LineageEvents(file, SystemClock(), "one")
    told.in_force(prepare(REGISTRY))
    told.in_force(prepare(replace(REGISTRY, materialized={"v": 9})))
    told.in_force(prepare(replace(REGISTRY, materialized={"v": 9})))
    await told.flush()
    await told.flush()
    applied, materialized = events(file)
    assert applied["job"] == {**applied["job"], "namespace": "feast://p", "name": "apply"}
    (view,) = applied["outputs"]
    assert view["name"] == "v"
    assert view["facets"]["version"]["datasetVersion"] == "hash1"
    assert [f["name"] for f in view["facets"]["schema"]["fields"]] == ["x"]
    assert materialized["job"]["name"] == "materialize.v"
    assert materialized["inputs"][0]["name"] == "FileSource v_file"
    # Another replica tells of the same runs.
    other = LineageEvents(tmp_path / "other.jsonl", SystemClock(), "two")
    other.in_force(prepare(REGISTRY))
    await other.flush()
    assert events(tmp_path / "other.jsonl")[0]["run"]["runId"] == applied["run"]["runId"]


async def test_serving_is_added_up(tmp_path: Path) -> None:
    """A thousand calls are one event, with the rows, and the views' versions as inputs."""
    file = tmp_path / "events.jsonl"
    told = LineageEvents(file, SystemClock(), "one")
    found = prepare(REGISTRY)
    told.in_force(found)
    for _ in range(1_000):
        told.served(found.services["s"], 3)
    await told.flush()
    (served,) = [event for event in events(file) if event["job"]["name"] == "serve.s"]
    assert served["inputs"][0]["facets"]["version"]["datasetVersion"] == "hash1"
    assert served["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 3_000


async def test_events_that_can_go_nowhere_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that can't be written is said in the log; with OPENLINEAGE_DISABLED none is made."""
    (tmp_path / "file").write_text("no folder")
    told = LineageEvents(tmp_path / "file" / "events.jsonl", SystemClock(), "one")
    told.in_force(prepare(REGISTRY))
    await told.flush()
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    silent = LineageEvents(tmp_path / "silent.jsonl", SystemClock(), "one")
    silent.in_force(prepare(REGISTRY))
    await silent.flush()
    assert not (tmp_path / "silent.jsonl").exists()
