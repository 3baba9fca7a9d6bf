"""Candidates of version `live`: whatever serves now, under its own exact version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services.chassis.files import FileError
from services.router.board import Board
from services.router.catalog import load_catalog
from services.router.ports import Inference
from tests.unit.router.ports import CATALOG, Clock, FakePath
from twinpath.inference.v1 import inference_pb2

TASK = "tumour_triage"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A catalog whose local candidate is whatever serves."""
    copy = Path(shutil.copytree(CATALOG, tmp_path / "catalog"))
    file = copy / "tasks" / f"{TASK}.yaml"
    text = file.read_text()
    file.write_text(
        text.replace('model: tumour_small, version: "1"', "model: tumour_small, version: live")
    )
    assert "version: live" in file.read_text()
    return copy


class Versions(FakePath):
    """A local path that holds two versions of one model."""

    serving = "1"

    async def describe(self) -> list[inference_pb2.ModelDescription]:
        """See ports.Inference."""
        return [
            inference_pb2.ModelDescription(
                name="tumour_small",
                version=version,
                state=inference_pb2.MODEL_STATE_READY,
                serving=version == self.serving,
            )
            for version in ("1", "2")
        ]


async def test_a_live_candidate_is_the_version_that_serves(folder: Path) -> None:
    """Plan, policy and breaker see its exact version; with another one they start afresh."""
    catalog = load_catalog(folder)
    path = Versions("local", catalog)
    paths: dict[str, Inference] = {"local": path}
    board = Board(paths, Clock(), 1.0)
    task = catalog.tasks[TASK]
    before = board.candidates(task)[0]
    assert before.version == "live"
    assert not board.state(before).ready  # nobody has said what serves
    await board.refresh()
    first = board.candidates(task)[0]
    assert (first.version, first.facts["version"]) == ("1", "1")
    assert board.state(first).ready
    path.serving = "2"
    await board.refresh()
    second = board.candidates(task)[0]
    assert (second.version, second.facts["version"]) == ("2", "2")
    assert board.gauge(second) is not board.gauge(first)
    path.serving = ""
    await board.refresh()
    assert not board.state(board.candidates(task)[0]).ready


def test_a_vendors_version_cant_be_live(folder: Path) -> None:
    """What a vendor serves under no version is not what was approved."""
    file = folder / "tasks" / f"{TASK}.yaml"
    text = file.read_text()
    file.write_text(
        text.replace('model: tumour_large, version: "1"', "model: tumour_large, version: live")
    )
    with pytest.raises(FileError, match="only a local candidate"):
        load_catalog(folder)
