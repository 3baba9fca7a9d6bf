"""`twinpath models`, against a real local path over a real Triton."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.embedded.triton import Triton
from services.local.compose import build
from services.local.settings import LocalSettings
from tests import triton_models
from tests.local_path import triton
from tests.support import ROOT, MeshKeys, free_port, settings_for, start_service

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton with two models."""
    folder = tmp_path_factory.mktemp("triton")
    with triton(
        folder,
        triton_models.batched,
        triton_models.echo,
        control="explicit",
        load=("batched", "echo"),
    ) as running:
        yield running


async def twinpath(
    server: Triton, keys: MeshKeys, home: Path, *arguments: str
) -> tuple[int, str, str]:
    """Run the command as a process of its own; exit status, stdout, stderr."""
    settings = settings_for(
        LocalSettings,
        keys,
        triton_url=server.url,
        models=server.options.models,
        control="explicit",
        control_file=home.parent / "models.json",
        refresh_s=0.1,
    )
    async with start_service(settings, build) as service:
        async with asyncio.timeout(60):
            while not await service.health.check():  # noqa: ASYNC110 - not this loop's event
                await asyncio.sleep(0.05)
        environment = {
            **os.environ,
            "TWINPATH_HOME": str(home),
            "TWINPATH_ROUTER_ADDRESS": f"127.0.0.1:{free_port()}",
            "TWINPATH_REMOTE_ADDRESS": f"127.0.0.1:{free_port()}",
            "TWINPATH_LOCAL_ADDRESS": service.address,
            "TWINPATH_TOKEN_FILE": str(keys.token_file("olivia", roles=["operator"])),
            "COLUMNS": "200",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "models", *arguments),
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_list_names_every_version(server: Triton, keys: MeshKeys, tmp_path: Path) -> None:
    """With path, state and artifact."""
    code, out, err = await twinpath(server, keys, tmp_path, "list", "--path", "local")
    assert (code, err) == (0, "")
    rows = [line.split()[:4] for line in out.splitlines()]
    assert ["batched", "1", "local", "ready"] in rows
    assert ["batched", "2", "local", "ready"] in rows
    assert ["echo", "1", "local", "ready"] in rows


async def test_a_path_that_is_away_is_said(server: Triton, keys: MeshKeys, tmp_path: Path) -> None:
    """The other path's models are shown, and the command fails."""
    code, out, err = await twinpath(server, keys, tmp_path, "list")
    assert code == 1
    assert "batched" in out
    assert "UNAVAILABLE" in err


async def test_describe_shows_the_tensors(server: Triton, keys: MeshKeys, tmp_path: Path) -> None:
    """In words, and as JSON."""
    arguments = ("describe", "batched", "--version", "2", "--path", "local")
    code, out, _ = await twinpath(server, keys, tmp_path, *arguments)
    assert code == 0
    assert "any x 3" in out
    assert "up to 8" in out
    code, out, _ = await twinpath(server, keys, tmp_path, *arguments, "--json")
    [model] = json.loads(out)["models"]
    assert model["inputs"] == [
        {"name": "features", "datatype": "DATATYPE_FP32", "shape": ["-1", "3"]}
    ]


async def test_an_unknown_model_is_an_error(server: Triton, keys: MeshKeys, tmp_path: Path) -> None:
    """With its reason, and exit status 1."""
    code, out, err = await twinpath(server, keys, tmp_path, "describe", "nope", "--path", "local")
    assert (code, out) == (1, "")
    assert "MODEL_UNKNOWN" in err


async def test_a_version_is_rolled_back_unloaded_and_loaded_again(
    server: Triton, keys: MeshKeys, tmp_path: Path
) -> None:
    """By hand, one command each; what can't be done is refused with its reason."""
    for arguments, wanted in (
        (("rollback", "batched", "--to", "1"), "batched 1 serves, no longer 2"),
        (("unload", "batched", "2"), "batched 2 is unloaded"),
        (("load", "batched", "2"), "batched 2 serves, warmed up in"),
        (("rollback", "batched"), "batched 1 serves, no longer 2"),
    ):
        code, out, err = await twinpath(server, keys, tmp_path, *arguments)
        assert (code, err) == (0, "")
        assert wanted in out
    code, _, err = await twinpath(server, keys, tmp_path, "unload", "batched", "1")
    assert code == 1
    assert "MODEL_SERVING" in err
    code, out, _ = await twinpath(server, keys, tmp_path, "states", "batched")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["batched", "1", "ready", "yes"] in rows
    assert ["batched", "2", "ready"] in rows
