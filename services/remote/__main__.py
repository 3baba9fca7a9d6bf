"""`python -m services.remote`: the remote path as a process."""

from __future__ import annotations

from services.chassis.run import main
from services.remote.compose import build
from services.remote.settings import RemoteSettings

if __name__ == "__main__":
    main("remote", RemoteSettings, build)
