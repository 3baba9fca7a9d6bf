"""`python -m services.local`."""

from __future__ import annotations

from services.chassis.run import main
from services.local.compose import build
from services.local.settings import LocalSettings

if __name__ == "__main__":
    main("local", LocalSettings, build)
