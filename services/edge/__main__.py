"""`python -m services.edge`: the five services in one process, for a node with little room.

The same services with the same settings, each on its own address; only calls among them stay in
the process (chassis/inprocess.py). What that costs: they fail together, they share one core's
worth of Python, and their spans and metrics have one process to their name.
"""

from __future__ import annotations

from services.audit.compose import build as audit
from services.audit.settings import AuditSettings
from services.chassis.run import host
from services.features.compose import build as features
from services.features.settings import FeaturesSettings
from services.local.compose import build as local
from services.local.settings import LocalSettings
from services.remote.compose import build as remote
from services.remote.settings import RemoteSettings
from services.router.compose import build as router
from services.router.settings import RouterSettings

if __name__ == "__main__":
    host(
        "edge",
        [  # who is called comes before its caller
            (AuditSettings, audit),
            (FeaturesSettings, features),
            (LocalSettings, local),
            (RemoteSettings, remote),
            (RouterSettings, router),
        ],
    )
