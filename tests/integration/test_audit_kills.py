"""Kill -9 of the audit service, small; `tests/chaos/audit_kills.py` runs it at length."""

from __future__ import annotations

import pytest

from tests.chaos import audit_kills


@pytest.mark.integration
@pytest.mark.timeout(600)
async def test_nothing_acknowledged_is_lost(tmp_path):
    """Twelve kills under load: nothing acknowledged is missing, no decision has two OUTCOMEs."""
    tally = await audit_kills.run(tmp_path, kills=12, seed=7)
    assert tally.kills == 12
    assert tally.acknowledged > 500
