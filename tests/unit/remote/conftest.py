"""The remote service before a real stand-in vendor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import MeshKeys
from tests.unit.remote.support import Remote, start_remote


@pytest.fixture
async def remote(keys: MeshKeys, tmp_path: Path) -> AsyncIterator[Remote]:
    """The service and the stand-in, in this process."""
    async with start_remote(keys, tmp_path) as running:
        yield running
