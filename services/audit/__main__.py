"""`python -m services.audit` runs the audit service."""

from __future__ import annotations

from services.audit.compose import build
from services.audit.settings import AuditSettings
from services.chassis.run import main

if __name__ == "__main__":
    main("audit", AuditSettings, build)
