"""Validation rules in the running feature service, and ours over our own views."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.chassis.errors import from_status
from services.features.definitions import Registry
from services.features.validation import read_rules
from tests import support
from tests.unit.features import feast_repo

pytestmark = pytest.mark.integration

RULES = """\
view: clicks
rules:
  - {feature: count, range: {min: 0, max: 9}}
  - {feature: count, range: {max: 5}, action: mark}
"""


async def test_a_row_that_breaks_a_rule_fails_alone(tmp_path: Path, keys: support.MeshKeys) -> None:
    """It says FEATURE_RULE_BROKEN with the feature's name; others are answered or marked."""
    from feast import Entity, FeatureService, FeatureView, Field, ValueType
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import Int64

    async with feast_repo.valkey(tmp_path / "valkey") as server:
        repo = feast_repo.Repo(tmp_path / "repo", server.address)
        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
        clicks = FeatureView(
            name="clicks",
            entities=[user],
            schema=[Field(name="count", dtype=Int64)],
            source=feast_repo.file_source("clicks"),
        )
        repo.apply(user, clicks, FeatureService(name="clicks_v1", features=[clicks]))
        for entity, count in ((1, 3), (2, 7), (3, 77)):
            row = {"count": Value(int64_val=count)}
            repo.write("clicks", {"user_id": Value(int64_val=entity)}, row, datetime.now(tz=UTC))
        folder = repo.folder / "validation"
        folder.mkdir()
        file = folder / "clicks.yaml"
        file.write_text(RULES)
        async with feast_repo.serving(repo.folder, server.url, keys) as client:
            await client.ready("clicks_v1")
            answer = await client.get("clicks_v1", {"user_id": [1, 2, 3, 4]})
            errors = [from_status(row.status) for row in answer.rows]
            assert [error and error.reason for error in errors] == [
                *(None, None, "FEATURE_RULE_BROKEN", None)
            ]
            assert errors[2] is not None
            assert errors[2].metadata["features"] == "clicks__count"
            marks = [list(row.broken_rules) for row in answer.rows]
            one = "clicks__count (range)"
            assert marks == [[], [one], [one, one], []]
            # A broken file changes nothing; a mended one is in force soon.
            file.write_text(RULES.replace("min", "minn"))
            await asyncio.sleep(0.5)
            assert (await client.get("clicks_v1", {"user_id": [3]})).rows[0].status.code
            file.write_text(RULES.replace("max: 9", "max: 99"))
            for _ in range(200):
                answer = await client.get("clicks_v1", {"user_id": [3]})
                if not answer.rows[0].status.code:
                    break
                await asyncio.sleep(0.05)
            assert not answer.rows[0].status.code


DEFINED = """
import json
from pathlib import Path
from feast.repo_operations import _get_repo_contents
found = _get_repo_contents(Path(".").resolve(), "twinpath")
views = [*found.feature_views, *found.on_demand_feature_views]
fields = {v.name: {f.name: f.dtype.to_value_type().name for f in v.features} for v in views}
print(json.dumps(fields))
"""


def test_the_rules_of_our_own_views_are_sound() -> None:
    """Every view of ours has rules, and every file names a view and features that there are."""
    repo = support.ROOT / "feature_repo"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DEFINED],
        cwd=repo,
        env={**os.environ, "TWINPATH_FEAST_REDIS": "127.0.0.1:1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    schemas = json.loads(done.stdout.splitlines()[-1])
    rules = read_rules(repo / "validation", Registry("", "twinpath", {}, schemas=schemas))
    assert set(rules) == set(schemas)
