"""Where everything of one mesh lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Layout:
    """Folders of one mesh. Nothing is made by asking for them.

    Attributes:
        home: What can be made once and used by several meshes: the trained models.
        runtime: What belongs to one mesh alone: keys, log, state, logs of processes.
        feature_repo: The Feast repo, with its generated `data/`.
        catalog: Tasks, policies, providers, and the access table.
        triton_env: The virtual environment that holds the embedded Triton.
        models: Triton's model repository, if it is not the trained one.
    """

    home: Path
    runtime: Path
    feature_repo: Path = ROOT / "feature_repo"
    catalog: Path = ROOT / "deploy" / "catalog"
    triton_env: Path = ROOT / ".venv-triton"
    models: Path | None = None

    @property
    def trained(self) -> Path:
        """Triton's model repository, as the training writes it."""
        return self.home / "models"

    @property
    def artifacts(self) -> Path:
        """The stand-in vendor's models."""
        return self.home / "artifacts"

    @property
    def artifact_keys(self) -> Path:
        """The folder of the key that signs the trained models' cards: it goes where they go."""
        return self.home / "signing"

    @property
    def control_file(self) -> Path:
        """Which versions of models operators have loaded."""
        return self.runtime / "local" / "models.json"

    @property
    def run(self) -> Path:
        """`mesh.json`."""
        return self.runtime / "run"

    @property
    def logs(self) -> Path:
        """One log file for each process and step."""
        return self.runtime / "run" / "logs"

    @property
    def keys(self) -> Path:
        """Keys and tokens."""
        return self.runtime / "keys"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.runtime / "audit"

    @property
    def state(self) -> Path:
        """The state store's append-only file."""
        return self.runtime / "state"

    @property
    def outbox(self) -> Path:
        """The router's records while the audit service is away."""
        return self.runtime / "outbox" / "records"

    @property
    def backends(self) -> Path:
        """Our own Triton backends."""
        return ROOT / "deploy" / "triton" / "backends"

    def log(self, name: str) -> Path:
        """The log file of a process or step."""
        return self.logs / f"{name}.log"


def laptop(home: Path, environment: Mapping[str, str], *, runtime: Path | None = None) -> Layout:
    """The layout of a mesh in this checkout.

    Args:
        home: Where the trained models are kept.
        environment: May name another Triton environment by TWINPATH_TRITON_ENV, and another
            catalog by TWINPATH_CATALOG.
        runtime: Where keys, log and state are; None: in `home`, too.
    """
    found = Layout(home=home, runtime=runtime or home)
    triton, catalog = environment.get("TWINPATH_TRITON_ENV"), environment.get("TWINPATH_CATALOG")
    if triton:
        found = replace(found, triton_env=Path(triton))
    return replace(found, catalog=Path(catalog)) if catalog else found
