"""The real Jaeger, where `make jaeger` has built it: one trace back end for a mesh."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from services.cli.embedded.ports import LOOPBACK, free_port
from services.cli.embedded.process import ManagedProcess, ProcessSpec

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "deploy" / "jaeger" / "config.yaml"

# The environment variable of each port in the configuration.
_PORTS = ("OTLP", "OTLP_HTTP", "QUERY", "QUERY_GRPC", "HEALTH")


def binary(environment: Mapping[str, str] | None = None) -> Path | None:
    """Return Jaeger's binary, or None where there is none.

    TWINPATH_JAEGER names it (and `none` means: don't); else it is what `make jaeger` builds.
    """
    named = (os.environ if environment is None else environment).get("TWINPATH_JAEGER", "")
    if named == "none":
        return None
    found = Path(named) if named else ROOT / ".twinpath" / "bin" / "jaeger"
    return found if os.access(found, os.X_OK) else None


class Jaeger(ManagedProcess):
    """Jaeger v2 with its store in memory, on 127.0.0.1; ready when its query API answers.

    Args:
        program: Its binary; see `binary`.
        folder: Where its log goes.
        ports: By name (otlp, otlp_http, query, query_grpc, health); free ones where none is given.
    """

    def __init__(self, program: Path, folder: Path, ports: Mapping[str, int] | None = None) -> None:
        given = ports or {}
        self._ports = {name: given.get(name.lower()) or free_port() for name in _PORTS}
        folder.mkdir(parents=True, exist_ok=True)
        variables = {
            f"TWINPATH_JAEGER_{name}_PORT": str(port) for name, port in self._ports.items()
        }
        super().__init__(
            ProcessSpec(
                name="jaeger",
                argv=(str(program), "--config", str(CONFIG)),
                log_path=folder / "jaeger.log",
                env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **variables},
                cwd=folder,
                ready=self._answers,
                ready_timeout_s=60.0,
            )
        )

    @property
    def endpoint(self) -> str:
        """OTLP/gRPC, as OTEL_EXPORTER_OTLP_ENDPOINT takes it."""
        return f"http://{LOOPBACK}:{self._ports['OTLP']}"

    @property
    def otlp_http(self) -> str:
        """OTLP/HTTP, as TWINPATH_OTLP_HTTP_ENDPOINT takes it."""
        return f"http://{LOOPBACK}:{self._ports['OTLP_HTTP']}"

    @property
    def url(self) -> str:
        """Its query API."""
        return f"http://{LOOPBACK}:{self._ports['QUERY']}"

    async def _answers(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=2.0)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(f"{self.url}/api/services") as reply,
        ):
            return reply.status == 200
