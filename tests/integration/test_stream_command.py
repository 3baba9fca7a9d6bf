"""`twinpath infer --stream` as a person or a script runs it, on both paths."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import MeshUnderTest
from tests.support import ROOT

pytestmark = pytest.mark.integration

NOTE = (
    "Der Patient kam am Montag. He reported intermittent dyspnoea and Schwäche since the "
    "myocardial infarction. It was a nice day. Furosemide was increased."
)


async def summary(home: Path, path: str, *more: str) -> tuple[list[str], str]:
    """Run the command; return what came to standard output, piece by piece, and its errors."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    fields = ("--entity", "note_id=n1", "--field", f"note={NOTE}", "--path", path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "infer", "note_summary", *fields, "--stream"),
        *more,
        env={**kept, "TWINPATH_HOME": str(home), "COLUMNS": "200"},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    pieces = []
    while piece := await process.stdout.read(65_536):
        pieces.append(piece.decode())
    errors = (await process.stderr.read()).decode()
    assert await process.wait() == 0, errors
    return pieces, errors


@pytest.mark.parametrize("path", ["local", "remote"])
async def test_text_is_shown_as_it_arrives(mesh: MeshUnderTest, mesh_home: Path, path: str) -> None:
    """The text comes in several pieces, whole words of it before the decision is shown."""
    del mesh
    pieces, _ = await summary(mesh_home, path)
    assert len(pieces) > 1, "all came at once"
    text, _, decision = "".join(pieces).partition("\n")
    assert "dyspnoea" in text
    assert "Schwäche" in text
    assert path in decision


async def test_with_json_standard_output_is_json(mesh: MeshUnderTest, mesh_home: Path) -> None:
    """A script gets the final message alone; the text goes beside it."""
    del mesh
    pieces, errors = await summary(mesh_home, "local", "--json")
    reply = json.loads("".join(pieces))
    assert reply["answered_by"]["path"] == "PATH_LOCAL"
    assert "dyspnoea" in errors
