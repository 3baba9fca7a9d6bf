"""`twinpath features` against a running feature service, as a person types it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from services.cli.embedded.valkey import Valkey
from tests import support
from tests.unit.features import feast_repo

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def environment(tmp_path: Path, keys: support.MeshKeys) -> AsyncIterator[dict[str, str]]:
    """A service with one entity, and the variables by which a command finds it."""
    from feast import Entity, FeatureService, FeatureView, Field, ValueType
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import Int64, String

    async with Valkey("features", tmp_path / "valkey") as server:
        repo = feast_repo.Repo(tmp_path / "repo", server.address)
        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
        clicks = FeatureView(
            name="clicks",
            entities=[user],
            ttl=timedelta(hours=1),
            schema=[Field(name="count", dtype=Int64), Field(name="town", dtype=String)],
            source=feast_repo.file_source("clicks"),
            tags={"data_class": "internal"},
        )
        repo.apply(user, clicks, FeatureService(name="clicks_v1", features=[clicks]))
        when = datetime.now(tz=UTC) - timedelta(days=3)
        row = {"count": Value(int64_val=5), "town": Value()}
        repo.write("clicks", {"user_id": Value(int64_val=1)}, row, when)
        async with feast_repo.serving(repo.folder, server.url, keys) as client:
            await client.ready()
            token = keys.token_file("operator", roles=["operator"])
            yield {
                **os.environ,
                "TWINPATH_FEATURES_ADDRESS": client.running.address,
                "TWINPATH_ROUTER_ADDRESS": "127.0.0.1:1",
                "TWINPATH_TOKEN_FILE": str(token),
                "TWINPATH_HOME": str(tmp_path / "nothing"),
                "TWINPATH_FEATURES_REPO": str(repo.folder),
                "COLUMNS": "160",
            }


async def twinpath(environment: dict[str, str], *words: str) -> tuple[int, str]:
    """Run a command; return its exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "features", *words),
        env=environment,
        cwd=support.ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, text.decode()


async def test_get_shows_values_and_freshness(environment: dict[str, str]) -> None:
    """Each feature stands with its value, status and age."""
    code, text = await twinpath(environment, "get", "clicks_v1", "-e", "user_id=1")
    assert code == 0, text
    count = next(line for line in text.splitlines() if "clicks:count" in line)
    assert all(word in count for word in ("5", "stale", "3 d", "internal"))
    assert "null" in next(line for line in text.splitlines() if "clicks:town" in line)


async def test_get_names_what_is_wrong(environment: dict[str, str]) -> None:
    """Errors of the service are shown with each field; the exit code is 1."""
    code, text = await twinpath(environment, "get", "clicks_v1", "-e", "user=1")
    assert code == 1
    assert "INVALID_ARGUMENT" in text
    assert "user_id (INT64) is missing" in text
    code, text = await twinpath(environment, "get", "clicks_v1", "-e", "user_id=one")
    assert code == 1
    assert "needs INT64" in text


async def test_list_and_lineage(environment: dict[str, str]) -> None:
    """Services are listed; a view's way leads from its source to the feature service."""
    code, text = await twinpath(environment, "list")
    assert code == 0, text
    assert "clicks_v1" in text
    assert "user_id (INT64)" in text
    code, text = await twinpath(environment, "lineage", "clicks")
    assert code == 0, text
    assert "FileSource clicks" in text
    assert "feature service clicks_v1" in text
    code, text = await twinpath(environment, "lineage", "nobody")
    assert code == 1
    assert "clicks" in text
