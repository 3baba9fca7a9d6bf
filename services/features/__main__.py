"""`python -m services.features`: the feature service as a process."""

from __future__ import annotations

from services.chassis.run import main
from services.features.compose import build
from services.features.settings import FeaturesSettings

if __name__ == "__main__":
    main("features", FeaturesSettings, build)
