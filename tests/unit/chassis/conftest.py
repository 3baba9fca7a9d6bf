"""An environment of their own for the chassis's tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_inherited_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's TWINPATH_ and OTEL_ variables out."""
    for name in list(os.environ):
        if name.startswith(("TWINPATH_", "OTEL_")):
            monkeypatch.delenv(name)
