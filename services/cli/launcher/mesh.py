"""The whole mesh on one machine: started in order, ready by real checks, stopped in reverse."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.cli import description
from services.cli.description import MeshDescription, MeshNotRunningError
from services.cli.embedded.jaeger import Jaeger
from services.cli.embedded.ports import LOOPBACK
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.cli.embedded.triton import Triton, TritonOptions
from services.cli.embedded.valkey import Valkey
from services.cli.launcher import ground, ports
from services.cli.launcher.environment import Wiring, edge, environments, inherited, otlp_http
from services.cli.launcher.keys import SERVICES, Keys, make_keys
from services.cli.launcher.layout import ROOT, Layout
from services.cli.launcher.progress import Progress, Silent, step
from services.cli.launcher.readiness import Check, answering, serving, together_ready
from services.cli.tracing.collector import Collector

_READY_S = 90.0
_GRACE_S = 8.0


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """How a mesh is started.

    Attributes:
        layout: Its folders.
        fixed_ports: Take the ports of `ports.FIXED` where they are free.
        tracing: Collect spans, or send them on if the environment names a collector.
        edge: All five services in one process, `edge`, instead of one each.
        jaeger: Jaeger's binary: it takes the spans, unless the environment names a collector.
        standin_latency_ms: What the stand-in vendor adds before every answer.
        standin_jitter_ms: At random on top of it.
        extra: Further environment variables by service, or for all `services`; they win.
        environment: Our own environment: names external servers and collectors.
    """

    layout: Layout
    fixed_ports: bool = False
    tracing: bool = True
    edge: bool = False
    jaeger: Path | None = None
    standin_latency_ms: float = 30.0
    standin_jitter_ms: float = 10.0
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Mesh:
    """Valkey, Triton, the stand-in vendor and the five services, as processes of their own.

    Names of processes: `state`, `features-store`, `triton`, `standin`, and the services, or `edge`
    in place of them. An
    external server named by TWINPATH_STATE_URL, TWINPATH_FEATURES_URL or TWINPATH_TRITON_URL has
    no process here. Not bound to an event loop; start it from a thread that lives as long as it.
    """

    def __init__(self, options: MeshOptions, progress: Progress | None = None) -> None:
        self.options = options
        self.layout = options.layout
        self.collector: Collector | None = None
        self.jaeger: Jaeger | None = None
        self.processes: dict[str, ManagedProcess] = {}
        self._progress = progress or Silent()
        self._ports: dict[str, int] = {}
        self._keys: Keys | None = None
        self._wiring: Wiring | None = None

    @property
    def keys(self) -> Keys:
        """Keys and tokens; there once it was started."""
        assert self._keys is not None, "the mesh was not started"
        return self._keys

    @property
    def wiring(self) -> Wiring:
        """Where everything is; there once it was started."""
        assert self._wiring is not None, "the mesh was not started"
        return self._wiring

    async def start(self) -> Self:
        """Start everything and wait until it is ready; stops what was started if that fails.

        Raises:
            GroundError: Data, models or features could not be made.
            ProcessError: A process did not get ready; the text holds its last log lines.
            TritonUnavailableError: This machine can't run the embedded Triton.
            MeshRunningError: Another mesh runs in the same folder.
        """
        self._refuse_a_second_one()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def _start(self) -> None:
        options, layout = self.options, self.layout
        self._ports = ports.choose(fixed=options.fixed_ports)
        layout.logs.mkdir(parents=True, exist_ok=True)
        self._keys = make_keys(layout.keys)
        self._start_collector()
        await ground.make_data(layout, self._progress)
        await ground.make_models(layout, self._progress)
        self._wiring = self._wire()
        self.processes = self._make_processes()
        # The store has to answer before features go in. All else may start meanwhile: a service
        # whose dependency is not there yet waits for it, NOT_SERVING. The router comes last.
        first = ("jaeger", "features-store")
        await self._start_all([name for name in first if name in self.processes])
        last = "edge" if options.edge else "router"
        rest = [name for name in self.processes if name not in (*first, last)]
        await together(self._start_all(rest), self.fill_store())
        await self._start_all([last])
        self._describe()

    async def fill_store(self) -> None:
        """Apply and materialize the features, as after a loss of the store."""
        await ground.fill_store(self.layout, self.wiring.features_url, self._progress)

    async def stop(self) -> None:
        """Stop everything, in reverse of its start. Safe to call at any time."""
        running = [name for name in reversed(self.processes) if self.processes[name].running]
        services = [name for name in running if name in (*SERVICES, "edge")]
        servers = [name for name in running if name not in services]
        # The router first, then those that it called, then the servers behind them.
        for group in (["router"], [name for name in services if name != "router"], servers):
            await asyncio.gather(
                *(self.processes[name].stop() for name in group if name in running)
            )
        if self.collector is not None:
            self.collector.stop()
        (self.layout.run / description.FILE).unlink(missing_ok=True)

    async def start_one(self, name: str) -> None:
        """Start a process again that was stopped or killed, and wait until it is ready."""
        await self._process(name).start()
        self._describe()

    async def stop_one(self, name: str) -> None:
        """Stop a process in an orderly way."""
        await self._process(name).stop()

    def kill(self, name: str) -> None:
        """Kill a process, as a crash would."""
        self._process(name).kill()

    def _process(self, name: str) -> ManagedProcess:
        if name not in self.processes:
            known = ", ".join(self.processes)
            raise ValueError(f"{name} is no process of this mesh; there are {known}")
        return self.processes[name]

    def token(self, role: str) -> str:
        """The token of a role (caller, operator, ...) or a service (`service:router`)."""
        return self.keys.tokens[role].read_text(encoding="ascii").strip()

    @property
    def standin_admin(self) -> str:
        """The stand-in vendor's admin endpoint."""
        return f"http://{LOOPBACK}:{self.wiring.standin_admin_port}"

    def health_of(self, name: str) -> Check:
        """The health check of a service, to wait for by `readiness.wait_for`."""
        return serving(self.wiring.services[name])

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def _refuse_a_second_one(self) -> None:
        try:
            other = description.read(self.layout.run)
        except MeshNotRunningError:
            return
        raise MeshRunningError(
            f"a mesh runs already in {self.layout.runtime}, by process {other.launcher_pid}; "
            "stop it with Ctrl-C, or give this one another folder by TWINPATH_HOME"
        )

    def _start_collector(self) -> None:
        environment = self.options.environment
        if not self.options.tracing or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            return
        if self.options.jaeger is not None:
            prefix = "jaeger-"
            own = {
                name.removeprefix(prefix).replace("-", "_"): port
                for name, port in self._ports.items()
                if name.startswith(prefix)
            }
            self.jaeger = Jaeger(self.options.jaeger, self.layout.logs, own)
        else:
            self.collector = Collector(
                self._ports["collector"], self._ports["collector-http"]
            ).start()

    def _wire(self) -> Wiring:
        environment, port = self.options.environment, self._ports
        features_url = environment.get("TWINPATH_FEATURES_URL") or _redis(port["features-store"])
        endpoint = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
        if self.jaeger is not None:
            endpoint = self.jaeger.endpoint
        elif self.collector is not None:
            endpoint = self.collector.endpoint
        standin = {
            "TWINPATH_STANDIN_LATENCY_MS": str(self.options.standin_latency_ms),
            "TWINPATH_STANDIN_JITTER_MS": str(self.options.standin_jitter_ms),
        }
        extra = dict(self.options.extra)
        if price := environment.get("TWINPATH_LOCAL_MACHINE_USD_PER_HOUR"):
            extra["local"] = {
                "TWINPATH_LOCAL_MACHINE_USD_PER_HOUR": price,
                **extra.get("local", {}),
            }
        extra["standin"] = {**standin, **extra.get("standin", {})}
        page = {name: f"{'router' if self.options.edge else name}-metrics" for name in SERVICES}
        return Wiring(
            services={name: f"{LOOPBACK}:{port[name]}" for name in SERVICES},
            metrics={name: f"{LOOPBACK}:{port[page[name]]}" for name in SERVICES},
            state_url=environment.get("TWINPATH_STATE_URL") or _redis(port["state"]),
            features_url=features_url,
            feast_address=ground.feast_address(features_url),
            triton_url=environment.get("TWINPATH_TRITON_URL") or f"{LOOPBACK}:{port['triton']}",
            triton_http=environment.get("TWINPATH_TRITON_HTTP", "")
            if environment.get("TWINPATH_TRITON_URL")
            else f"{LOOPBACK}:{port['triton-http']}",
            standin_url=f"http://{LOOPBACK}:{port['standin']}",
            standin_port=port["standin"],
            standin_admin_port=port["standin-admin"],
            otlp_endpoint=endpoint if self.options.tracing else "",
            own_triton=not environment.get("TWINPATH_TRITON_URL"),
            extra=extra,
        )

    def _make_processes(self) -> dict[str, ManagedProcess]:
        """Every process in the order of its start; none is started yet."""
        options, environment, layout = self.options, self.options.environment, self.layout
        found: dict[str, ManagedProcess] = {}
        if self.jaeger is not None:  # first up, last down: it hears of all that happens between
            found["jaeger"] = self.jaeger
        if not environment.get("TWINPATH_STATE_URL"):
            found["state"] = Valkey("state", layout.state, self._ports["state"])
        if not environment.get("TWINPATH_FEATURES_URL"):
            folder = layout.run / "features-store"
            found["features-store"] = Valkey("features", folder, self._ports["features-store"])
        if not environment.get("TWINPATH_TRITON_URL"):
            found["triton"] = Triton(self._triton_options())
        variables = environments(layout, self.keys, self.wiring)
        admin = answering(f"{self.standin_admin}/admin/health")
        found["standin"] = self._python("standin", variables["standin"], admin)
        if options.edge:
            every = together_ready([self.health_of(name) for name in SERVICES])
            found["edge"] = self._python("edge", edge(variables), every)
            return found
        for name in ("audit", "features", "local", "remote", "router"):
            found[name] = self._python(name, variables[name], self.health_of(name))
        return found

    def _triton_options(self) -> TritonOptions:
        layout, port = self.layout, self._ports
        traces = ""
        if self.jaeger is not None:
            traces = self.jaeger.otlp_http
        elif self.collector is not None:
            traces = self.collector.url
        elif self.options.tracing:
            traces = otlp_http(self.options.environment)
        return TritonOptions(
            models=layout.models or layout.trained,
            folder=layout.run / "triton",
            environment=layout.triton_env,
            backends=layout.backends,
            grpc_port=port["triton"],
            http_port=port["triton-http"],
            metrics_port=port["triton-metrics"],
            control="explicit",
            traces_url=f"{traces}/v1/traces" if traces else None,
        )

    def _python(self, name: str, variables: Mapping[str, str], ready: Check) -> ManagedProcess:
        spec = ProcessSpec(
            name=name,
            argv=(sys.executable, "-m", f"services.{name}"),
            log_path=self.layout.log(name),
            env={**inherited(self.options.environment), **variables},
            cwd=ROOT,
            ready=ready,
            ready_timeout_s=_READY_S,
            stop_grace_s=_GRACE_S,
        )
        return ManagedProcess(spec)

    async def _start_all(self, names: Sequence[str]) -> None:
        await together(*(self._start_named(name) for name in names))

    async def _start_named(self, name: str) -> None:
        with step(self._progress, name):
            await self.processes[name].start()

    def _describe(self) -> None:
        wiring, layout = self.wiring, self.layout
        triton = self.processes.get("triton")
        urls = {
            "state": wiring.state_url,
            "features-store": wiring.features_url,
            "standin": wiring.standin_url,
        }
        if self.jaeger is not None:
            urls["jaeger"] = self.jaeger.url
        if isinstance(triton, Triton):
            urls["triton-http"] = triton.http_url
            urls["triton-metrics"] = triton.metrics_url
        description.write(
            layout.run,
            MeshDescription(
                launcher_pid=os.getpid(),
                addresses={**wiring.services, "triton": wiring.triton_url},
                tokens={
                    name: str(path)
                    for name, path in self.keys.tokens.items()
                    if not name.startswith("service:")
                },
                metrics={name: f"http://{at}/metrics" for name, at in wiring.metrics.items()},
                pids={n: process.pid for n, process in self.processes.items() if process.running},
                logs={n: str(process.spec.log_path) for n, process in self.processes.items()},
                otlp_endpoint=wiring.otlp_endpoint,
                traces_url=self.collector.url if self.collector is not None else "",
                standin_admin=self.standin_admin,
                audit_log=str(layout.audit),
                audit_keys=str(self.keys.audit / "checkpoints.key.vkey"),
                urls=urls,
            ),
        )


class MeshRunningError(RuntimeError):
    """Another mesh runs in the same folder."""


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Run all at once; when one fails, cancel the others and raise its error alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _redis(port: int) -> str:
    return f"redis://{LOOPBACK}:{port}/0"
