"""Fixtures for every kind of test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import MeshKeys, mesh_keys


@pytest.fixture
def keys(tmp_path: Path) -> MeshKeys:
    """The keys of a mesh that exists for this test alone."""
    return mesh_keys(tmp_path / "keys")
