"""Our token at the vendor, searched for in everything that a running mesh leaves behind or says.

Real processes, their logs, the audit log's files, the state store's append-only file, and what
`twinpath providers` prints; on good ways and on bad ones.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.canary_mesh import REMOTE, mesh
from tests.integration.test_canary import batch, bulk, retry, straight, stream
from tests.support import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

BAD_WAYS = ("error;status=401", "error;status=403", "error;status=500", "reset", "garbage")


def forms(secret: str) -> list[bytes]:
    """A secret as it is, and as base64 shows it, wherever it begins in what was encoded."""
    encoded = [base64.b64encode(b"\0" * before + secret.encode()) for before in range(3)]
    return [secret.encode(), *(text[4:-4] for text in encoded)]


def holding(secret: str, folder: Path) -> Iterator[Path]:
    """The files below a folder that hold a secret in any form."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and any(form in path.read_bytes() for form in forms(secret)):
            yield path


async def said_by(*command: str, **environment: str) -> bytes:
    """What `twinpath` prints, both ways."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", *command, cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return out


async def test_our_token_is_in_its_file_and_nowhere_else(tmp_path: Path) -> None:
    """Not in a log, a record, the state store or on a terminal; the search finds the file itself."""
    printed: list[bytes] = []
    async with mesh(tmp_path, policy=True) as world:
        token_file = world.keys.standin_token
        token = token_file.read_text().strip()
        for road in (straight, retry, batch, stream, bulk):
            await world.well()
            await road(world)
            world.local.faults.clear()
            await world.faults()
        for fault in BAD_WAYS:
            await world.faults({"fault": fault})
            await world.infer(world.requests(2, only_path=REMOTE))
        catalog = ("--catalog", str(tmp_path / "catalog"))
        for url in (world.wiring.standin_url, "http://127.0.0.1:1"):
            where = {"TWINPATH_STANDIN_URL": url, "TWINPATH_STANDIN_TOKEN_FILE": str(token_file)}
            printed.append(await said_by("providers", "list", *catalog, **where))
            printed.append(await said_by("providers", "check", "--probe", *catalog, **where))
        assert world.answers  # good ways
        assert world.reasons  # bad ways
    assert all(b"vendor" in said for said in printed), printed
    assert not [said for said in printed if any(form in said for form in forms(token))]
    # What was searched is what there is: logs of the processes, records, the state store's file.
    assert list(holding(token, token_file.parent)) == [token_file]
    elsewhere = [path for path in holding(token, tmp_path) if path != token_file]
    assert elsewhere == []
    names = {path.name for path in (tmp_path / "run" / "logs").iterdir()}
    assert {"remote.log", "router.log", "audit.log", "standin.log"} <= names
    assert list(holding("twinpath:job", tmp_path / "state"))
    assert list(holding("standin-chat-2026-01-01", tmp_path / "audit"))
