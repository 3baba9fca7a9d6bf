"""The real Triton inference server, from the `nvidia-pytriton` package, on 127.0.0.1."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp

from services.cli.embedded.ports import LOOPBACK, free_ports
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.cli.embedded.triton_runtime import TritonRuntime, find_runtime

_ERROR_LINE = re.compile(r"E\d{4} |error|\w*Error:|terminate called", re.IGNORECASE)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - POSIX shared memory lives there on Linux


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """How Triton is started.

    Attributes:
        models: The model repository.
        folder: Our working folder: the assembled backends and the log `triton.log`.
        environment: The virtual environment that holds nvidia-pytriton.
        backends: Folder with our own Python-based backends (`<name>/model.py`), or None.
        grpc_port: gRPC port; None takes a free one. The same for HTTP and metrics.
        http_port: See `grpc_port`.
        metrics_port: See `grpc_port`.
        control: `none` loads the whole repository at start; `explicit` loads on request only.
        load: Models to load at start under `explicit`.
        traces_url: OTLP/HTTP address (`http://…/v1/traces`) for Triton's own spans; None: no spans.
        trace_rate: One of so many requests without a caller's trace is traced; a caller's sampled
            trace is always joined. Tracing every request overflows Triton's span queue under
            load, and Triton 2.51 dies of it (signal 11).
        trace_delay_ms: How long spans wait for company before they are sent.
        ready_timeout_s: Seconds until all models have to be loaded.
        extra: Further command line flags.
    """

    models: Path
    folder: Path
    environment: Path
    backends: Path | None = None
    grpc_port: int | None = None
    http_port: int | None = None
    metrics_port: int | None = None
    control: Literal["none", "explicit"] = "none"
    load: tuple[str, ...] = ()
    traces_url: str | None = None
    trace_rate: int = 1_000_000_000
    trace_delay_ms: int = 500
    ready_timeout_s: float = 120.0
    extra: tuple[str, ...] = field(default=())


class Triton(ManagedProcess):
    """Triton, ready when `/v2/health/ready` says that the server and its models are.

    Raises:
        TritonUnavailableError: By the constructor, if this machine can't run it; nothing was
            started by then.
    """

    def __init__(self, options: TritonOptions) -> None:
        runtime = find_runtime(options.environment)
        free = free_ports(3)
        self.options = options
        self.grpc_port = free[0] if options.grpc_port is None else options.grpc_port
        self.http_port = free[1] if options.http_port is None else options.http_port
        self.metrics_port = free[2] if options.metrics_port is None else options.metrics_port
        self._runtime = runtime
        self._shared_prefix = f"twinpath-{os.getpid()}-{self.grpc_port}-"
        super().__init__(
            ProcessSpec(
                name="triton",
                argv=self._argv(),
                log_path=options.folder / "triton.log",
                env=self._environment(),
                cwd=None,
                ready=self._is_ready,
                ready_timeout_s=options.ready_timeout_s,
                stop_grace_s=20.0,
            )
        )

    @property
    def url(self) -> str:
        """Its gRPC address, as TWINPATH_TRITON_URL takes it."""
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def http_address(self) -> str:
        """Its HTTP address, as TWINPATH_TRITON_HTTP takes it."""
        return f"{LOOPBACK}:{self.http_port}"

    @property
    def http_url(self) -> str:
        """The same as a URL."""
        return f"http://{self.http_address}"

    @property
    def metrics_url(self) -> str:
        """Its Prometheus metrics."""
        return f"http://{LOOPBACK}:{self.metrics_port}/metrics"

    def kill(self) -> None:
        """KILL what is left, and remove the shared memory that a killed server leaves."""
        super().kill()
        for segment in _SHARED_MEMORY.glob(f"*{self._shared_prefix}*"):
            segment.unlink(missing_ok=True)

    def log_tail(self, lines: int = 20) -> str:
        """Triton's error lines, then its last one: the rest of its log is tables of settings."""
        text = super().log_tail(2000).splitlines()
        errors = [line[:1000] for line in text if _ERROR_LINE.match(line)]
        return "\n".join([*errors[-lines:], *text[-1:]])

    def _launch(self) -> None:
        assemble(self._runtime, self.options.backends, self.options.folder)
        super()._launch()

    def _argv(self) -> tuple[str, ...]:
        options, runtime = self.options, self._runtime
        libraries = f"{_library_folder(options.folder)}:{runtime.libraries}"
        flags = [
            # Set by `env`, after the guard has run: these libraries are for Triton alone.
            *("/usr/bin/env", f"LD_LIBRARY_PATH={libraries}", str(runtime.server)),
            *("--model-repository", str(options.models.absolute())),
            *("--backend-directory", str(_backend_folder(options.folder))),
            *("--backend-config", f"python,shm-region-prefix-name={self._shared_prefix}"),
            *("--grpc-address", LOOPBACK, "--grpc-port", str(self.grpc_port)),
            *("--http-address", LOOPBACK, "--http-port", str(self.http_port)),
            *("--metrics-address", LOOPBACK, "--metrics-port", str(self.metrics_port)),
            *("--model-control-mode", options.control, "--exit-timeout-secs", "10"),
        ]
        for model in options.load:
            flags += ["--load-model", model]
        if options.traces_url is not None:
            for setting in (
                "mode=opentelemetry",
                f"opentelemetry,url={options.traces_url}",
                "opentelemetry,resource=service.name=triton",
                f"opentelemetry,bsp_schedule_delay={options.trace_delay_ms}",
                f"rate={options.trace_rate}",
                "level=TIMESTAMPS",
            ):
                flags += ["--trace-config", setting]
        return (*flags, *options.extra)

    def _environment(self) -> dict[str, str]:
        keep = ("HOME", "LANG", "TMPDIR", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
        # The stub finds its site-packages through the first `python3` on PATH.
        path = f"{self._runtime.environment / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        return {name: os.environ[name] for name in keep if name in os.environ} | {"PATH": path}

    async def _is_ready(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=2)
        url = f"{self.http_url}/v2/health/ready"
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as reply:
            return reply.status == 200


def assemble(runtime: TritonRuntime, backends: Path | None, folder: Path) -> Path:
    """Build the backend folder that Triton is pointed at, from the package's files and ours.

    Args:
        runtime: The environment's files.
        backends: Our own Python-based backends, one folder each, or None.
        folder: The working folder; `backends` and `lib` in it are made anew.

    Returns:
        The backend folder.
    """
    target, libraries = _backend_folder(folder), _library_folder(folder)
    for made in (target, libraries):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
    python = target / "python"
    shutil.copytree(
        runtime.package / "backends" / "python", python, ignore=shutil.ignore_patterns("__py*")
    )
    shutil.copy2(runtime.stub, python / runtime.stub.name)
    if backends is not None:
        for backend in sorted(backends.iterdir()):
            if (backend / "model.py").is_file():
                shutil.copytree(
                    backend, target / backend.name, ignore=shutil.ignore_patterns("__py*")
                )
    # A folder with this one library: the interpreter's own may hold others (libstdc++) that are
    # not the ones Triton was built with.
    (libraries / f"libpython{runtime.python}.so.1.0").symlink_to(runtime.libpython)
    return target


def _backend_folder(folder: Path) -> Path:
    return folder.absolute() / "backends"


def _library_folder(folder: Path) -> Path:
    return folder.absolute() / "lib"
