"""Kill -9 of audit and router, small; `tests/chaos/audit_kills.py` runs it at length."""

from __future__ import annotations

import pytest

from tests.chaos import audit_kills


@pytest.mark.integration
@pytest.mark.timeout(600)
async def test_nothing_acknowledged_is_lost(tmp_path):
    """Twelve kills under load: nothing acknowledged is missing, and no decision has two effects."""
    counts = await audit_kills.run(tmp_path, kills=12, seed=7)
    assert (counts.killed_audit, counts.killed_router) == (6, 6)
    assert counts.acknowledged > 2_000
    assert counts.decisions > 50
