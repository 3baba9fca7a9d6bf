"""What a running mesh says about itself: `run/mesh.json`, written by the launcher, read by all.

Holds addresses and paths of token files, never a token.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "mesh.json"


class MeshNotRunningError(Exception):
    """No mesh runs here, or what it left behind says that it ended."""


@dataclass(frozen=True, slots=True)
class MeshDescription:
    """Where everything of one mesh is.

    Attributes:
        launcher_pid: The process that keeps it running.
        addresses: gRPC host:port of router, features, local, remote, audit, and of `triton`.
        tokens: Token file by role (caller, operator, auditor, ...).
        metrics: Prometheus addresses (`http://…/metrics`) by service.
        pids: Process ids by name, those of embedded servers included.
        logs: Log files by name.
        otlp_endpoint: Where spans are sent (OTLP/gRPC). Empty: nowhere.
        traces_url: Where the built-in collector answers queries. Empty: it does not run.
        standin_admin: The stand-in vendor's admin endpoint.
        audit_log: The audit log's folder.
        audit_keys: File with the keys that verify its checkpoints, one vkey a line.
        urls: Further addresses, such as `state` and `features-store`.
    """

    launcher_pid: int
    addresses: dict[str, str]
    tokens: dict[str, str]
    metrics: dict[str, str] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    otlp_endpoint: str = ""
    traces_url: str = ""
    standin_admin: str = ""
    audit_log: str = ""
    audit_keys: str = ""
    urls: dict[str, str] = field(default_factory=dict)


def home() -> Path:
    """The folder of the runtime state: TWINPATH_HOME, or `.twinpath` in the checkout."""
    named = os.environ.get("TWINPATH_HOME")
    return Path(named) if named else Path(__file__).resolve().parents[2] / ".twinpath"


def write(run: Path, description: MeshDescription) -> Path:
    """Write `mesh.json` in the run folder; a reader never sees half of it."""
    run.mkdir(parents=True, exist_ok=True)
    part = run / f".{FILE}.part"
    part.write_text(json.dumps(asdict(description), indent=2) + "\n", encoding="utf-8")
    path = run / FILE
    part.replace(path)
    return path


def read(run: Path) -> MeshDescription:
    """Read the description of the mesh whose run folder this is.

    Raises:
        MeshNotRunningError: There is none, or its launcher is gone.
    """
    try:
        data = json.loads((run / FILE).read_text(encoding="utf-8"))
        description = MeshDescription(**data)
    except FileNotFoundError:
        raise MeshNotRunningError(f"no mesh runs in {run.parent}") from None
    except (ValueError, TypeError) as error:
        raise MeshNotRunningError(f"{run / FILE} can't be read: {error}") from None
    if not _alive(description.launcher_pid):
        raise MeshNotRunningError(
            f"the mesh in {run.parent} ended: its launcher, {description.launcher_pid}, is gone"
        )
    return description


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
