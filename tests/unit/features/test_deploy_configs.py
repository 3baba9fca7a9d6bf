"""The configurations for more than one machine are Feast's own, as far as can be seen here.

Engines whose packages are not installed can't be imported; the fields of their configuration are
then read from Feast's source.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from feast.errors import FeastModuleImportError
from feast.repo_config import (
    BATCH_ENGINE_CLASS_FOR_TYPE,
    OFFLINE_STORE_CLASS_FOR_TYPE,
    load_repo_config,
)
from ruamel.yaml import YAML

from services.features.store import FeastRepo
from tests import support
from tests.unit.features import feast_repo

FOLDER = support.ROOT / "deploy" / "features"
FILES = sorted(FOLDER.glob("*.yaml"))
# Feast keeps Ray's configuration beside its engine, in a module that Ray is not needed for.
_ELSEWHERE = {"ray.engine": "feast.infra.compute_engines.ray.config"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the files leave to the environment."""
    monkeypatch.setenv("TWINPATH_FEAST_REDIS", "one:6379,two:6379,three:6379")
    monkeypatch.setenv("TWINPATH_FEAST_REGISTRY", "postgresql+psycopg://u:p@host:5432/feast")
    monkeypatch.setenv("TWINPATH_FEAST_STAGING", "s3://bucket/feast")
    monkeypatch.setenv("TWINPATH_FEAST_SPARK", "spark://host:7077")
    monkeypatch.setenv("TWINPATH_FEAST_RAY", "ray://host:10001")


def fields(kind: str, path: str) -> set[str]:
    """The fields of an engine's configuration, from its source: nothing of it is imported."""
    module, _, name = path.rpartition(".")
    spec = importlib.util.find_spec("feast")
    assert spec is not None
    assert spec.origin is not None
    relative = _ELSEWHERE.get(kind, module).removeprefix("feast.").replace(".", "/")
    source = (Path(spec.origin).parent / f"{relative}.py").read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == f"{name}Config":
            return {
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    raise AssertionError(f"{path} has no configuration")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_feast_takes_the_configuration(file: Path) -> None:
    """Feast loads it, or lacks nothing but an engine's package; then its fields are known."""
    text: dict[str, Any] = YAML(typ="safe").load(file)
    try:
        config = load_repo_config(FOLDER, file)
        assert config.online_store.type == "redis"
        assert config.entity_key_serialization_version == 3
        assert config.batch_engine is not None
    except FeastModuleImportError:
        checked = 0
        for part, table in (
            ("offline_store", OFFLINE_STORE_CLASS_FOR_TYPE),
            ("batch_engine", BATCH_ENGINE_CLASS_FOR_TYPE),
        ):
            given = text.get(part, {"type": "local"})
            if given["type"] not in ("file", "local"):
                assert given.keys() <= fields(given["type"], table[given["type"]])
                checked += 1
        assert checked


def test_the_feature_service_reads_a_sql_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SQLite in PostgreSQL's place: what was applied, and then what was changed."""
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, ValueType
    from feast.types import Int64

    monkeypatch.setenv("TWINPATH_FEAST_REGISTRY", f"sqlite:///{tmp_path / 'registry.db'}")
    monkeypatch.setenv("TWINPATH_FEAST_REDIS", "127.0.0.1:6379")
    (tmp_path / "feature_store.yaml").write_text((FOLDER / "sql-registry.yaml").read_text("utf-8"))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    clicks = FeatureView(
        name="clicks",
        entities=[user],
        schema=[Field(name="count", dtype=Int64)],
        source=feast_repo.file_source("clicks"),
    )
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply([user, clicks, FeatureService(name="one", features=[clicks])])
    repo = FeastRepo(tmp_path, settle_s=0.0)
    first = repo.load()
    assert first is not None
    assert set(first.services) == {"one"}
    assert repo.load() is None
    store.apply([FeatureService(name="two", features=[clicks])])
    second = repo.load()
    assert second is not None
    assert set(second.services) == {"one", "two"}
