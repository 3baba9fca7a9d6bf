"""`twinpath features skew`: served values against offline ones of the same time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from services.cli import features, features_skew
from tests import support
from tests.unit.features import feast_repo

pytestmark = pytest.mark.integration

NOW = datetime.now(tz=UTC).replace(microsecond=123456)


@contextlib.asynccontextmanager
async def clicks(tmp_path: Path) -> AsyncIterator[tuple[feast_repo.Repo, str]]:
    """A repo whose offline rows are materialized, and its online store's URL."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64, String

    frame = pd.DataFrame(
        {
            "user_id": [1, 1, 2],
            "event_timestamp": [NOW - timedelta(hours=2), NOW, NOW],
            "count": [4, 5, 6],
            "rate": [0.25, 0.5, None],
            "town": ["Ulm", "Bonn", "Kiel"],
        }
    )
    frame.to_parquet(tmp_path / "clicks.parquet")
    async with feast_repo.valkey(tmp_path / "valkey") as server:
        repo = feast_repo.Repo(tmp_path / "repo", server.address)
        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
        clicks = FeatureView(
            name="clicks",
            entities=[user],
            ttl=timedelta(days=1),
            schema=[
                Field(name="count", dtype=Int64),
                Field(name="rate", dtype=Float64),
                Field(name="town", dtype=String),
            ],
            source=FileSource(
                name="clicks",
                path=str(tmp_path / "clicks.parquet"),
                timestamp_field="event_timestamp",
            ),
        )
        repo.apply(user, clicks, FeatureService(name="clicks_v1", features=[clicks]))
        until = datetime.now(tz=UTC) + timedelta(hours=1)
        repo.feast.materialize(NOW - timedelta(days=1), until)
        yield repo, server.url


def change(repo: feast_repo.Repo) -> None:
    """Make user 1's rate another one than the offline store's."""
    from feast.protos.feast.types.Value_pb2 import Value

    row = {"count": Value(int64_val=5), "rate": Value(double_val=0.75)}
    row["town"] = Value(string_val="Bonn")
    later = NOW + timedelta(seconds=1)  # Feast writes no row of an equal time
    repo.write("clicks", {"user_id": Value(int64_val=1)}, row, later)


async def test_skew_names_the_features_that_differ(tmp_path: Path, keys: support.MeshKeys) -> None:
    """Equal values pass with exit 0; one that was changed online is named with its entity."""
    async with (
        clicks(tmp_path) as (repo, url),
        feast_repo.serving(repo.folder, url, keys) as client,
    ):
        await client.ready()
        environment = {
            **os.environ,
            "TWINPATH_FEATURES_ADDRESS": client.running.address,
            "TWINPATH_ROUTER_ADDRESS": "127.0.0.1:1",
            "TWINPATH_TOKEN_FILE": str(keys.token_file("operator", roles=["operator"])),
            "TWINPATH_HOME": str(tmp_path / "nothing"),
            "TWINPATH_FEATURES_REPO": str(repo.folder),
            "COLUMNS": "160",
        }

        async def skew(*words: str) -> tuple[int | None, str]:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "ignore", "-m", "services.cli", "features", "skew"),
                *("clicks_v1", *words),
                env=environment,
                cwd=support.ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            text, _ = await process.communicate()
            return process.returncode, text.decode()

        (tmp_path / "users.csv").write_text("user_id\n1\n2\n3\n")
        code, text = await skew("--entities", str(tmp_path / "users.csv"))
        assert code == 0, text
        change(repo)
        code, text = await skew("-e", "user_id=1")
        assert code == 1, text
        lines = {line.split()[0]: line.split() for line in text.splitlines() if ":" in line}
        assert lines["clicks:rate"][1:] == ["0", "1", "0", "0", "0.25", "user_id=1"]
        assert lines["clicks:count"][1:] == ["1", "0", "0", "0"]


async def test_skew_of_what_was_served(tmp_path: Path, keys: support.MeshKeys) -> None:
    """Samples are found by who has their key, and compared at the times of what they hold."""
    (tmp_path / "samples.key").write_text("only the operator has this\n")
    samples = tmp_path / "samples"
    sampling = {
        "samples": samples,
        "sample_share": 1.0,
        "sample_key_file": tmp_path / "samples.key",
        "sample_interval_s": 600.0,
    }
    users = [{"user_id": number} for number in (1, 2, 3)]
    async with clicks(tmp_path) as (repo, url):
        async with feast_repo.serving(repo.folder, url, keys, **sampling) as client:
            await client.ready()
            await client.get("clicks_v1", {"user_id": [1, 2, 3]})
            change(repo)
            await client.get("clicks_v1", {"user_id": [1]})
        # Stopped: what waited was written.
        assert features_skew.join_keys(repo.folder, "clicks_v1") == ["user_id"]
        secret = b"only the operator has this"
        whose, served = features_skew.served_samples(samples, "clicks_v1", users, secret)
        assert whose == [*users, users[0]]
        found = features_skew.compare(repo.folder, "clicks_v1", whose, served)
    by_name = {skew.name: skew for skew in found}
    rate = by_name["clicks:rate"]
    assert (rate.same, rate.differ, rate.largest) == (1, 1, 0.25)
    assert rate.entities == ["user_id=1"]
    assert (by_name["clicks:town"].same, by_name["clicks:town"].differ) == (3, 0)
    with pytest.raises(features_skew.SkewError, match="no samples of these"):
        features_skew.served_samples(samples, "clicks_v1", users, b"another")


def test_samples_without_their_key_are_refused(tmp_path: Path) -> None:
    """The command says which option is missing."""
    words = ["skew", "s", "-e", "user_id=1", "--samples", str(tmp_path)]
    done = CliRunner().invoke(features.app, words)
    assert done.exit_code == 1
    assert "--key-file" in done.output
