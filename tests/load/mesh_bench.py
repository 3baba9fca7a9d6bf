"""What a governed decision costs: `make bench`, or `python -m tests.load.mesh_bench`.

One run, one generator, one machine. The whole mesh (features, Triton, durable audit, 10 % of the
traces sampled) at 1, 8, 32 and 64 callers, against

  echo     a bare grpc.aio server that gives back what it got: what gRPC in Python costs here;
  triton   the same model asked from Triton directly: no features, no policy, no record;
  script   what a team writes by hand: Feast SDK and tritonclient in one process, one caller.

Twice: with a process for each service (mesh), and with all five in one (edge; `twinpath up --edge`).

Prints a table with the ratios, and writes JSON; exits with 1 where the mesh misses a target. Absolute figures are this machine's and of this
hour; the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import service_pb2

from services.cli.embedded.ports import free_ports
from services.cli.launcher.layout import laptop
from services.cli.launcher.mesh import Mesh, MeshOptions
from tests.load.generator import Load, closed_loop, cpu_seconds, open_loop
from twinpath.common.v1 import context_pb2, value_pb2
from twinpath.router.v1 import router_pb2

INFER = "/twinpath.router.v1.Router/Infer"
TRITON_INFER = "/inference.GRPCInferenceService/ModelInfer"
ECHO = """
import sys, asyncio, grpc.aio, uvloop
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        async def echo(request, context):
            return request
        return grpc.unary_unary_rpc_method_handler(echo)
async def main():
    server = grpc.aio.server(handlers=[Handler()])
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()
uvloop.run(main())
"""
SCRIPT = """
import os, sys, time, json
os.chdir(sys.argv[1])
import numpy as np
from feast import FeatureStore
from tritonclient.grpc import InferenceServerClient, InferInput
store = FeatureStore(".")
service = store.get_feature_service("diabetes_progression_v1")
names = json.loads(sys.argv[4])
client = InferenceServerClient(sys.argv[2])
def decide(patient):
    row = store.get_online_features(
        features=service, entity_rows=[{"patient_id": patient, "bmi_now": 27.5}]
    ).to_dict()
    values = np.array([[row[name][0] for name in names]], dtype=np.float32)
    tensor = InferInput("features", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    return client.infer("diabetes_small", [tensor]).as_numpy("progression")
for i in range(50):
    decide(1 + i % 400)
times, end = [], time.perf_counter() + float(sys.argv[3])
i = 0
while (start := time.perf_counter()) < end:
    decide(1 + i % 400)
    i += 1
    times.append(time.perf_counter() - start)
times.sort()
print(json.dumps({"rate": len(times) / float(sys.argv[3]), "p50_ms": times[len(times) // 2] * 1e3}))
"""
FEATURES = [
    *("age", "sex", "bmi", "bp"),
    *("s1", "s2", "s3", "s4", "s5", "s6"),
    *("bmi_change", "bmi_bp_index", "ldl_hdl_ratio"),
]


def decisions() -> list[bytes]:
    """Requests about many patients, serialized."""
    out = []
    for patient in range(1, 401):
        request = router_pb2.InferRequest(
            task="diabetes_progression",
            entity={"patient_id": value_pb2.Value(int64_value=patient)},
            fields={"bmi_now": value_pb2.Value(double_value=20 + patient % 20)},
            only_path=context_pb2.PATH_LOCAL,
            priority=context_pb2.PRIORITY_INTERACTIVE,  # all of the limit is theirs
        )
        out.append(request.SerializeToString())
    return out


def direct() -> list[bytes]:
    """The same model's input for Triton, serialized."""
    values = np.linspace(0, 100, len(FEATURES), dtype=np.float32)
    request = service_pb2.ModelInferRequest(
        model_name="diabetes_small",
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(
                name="features", datatype="FP32", shape=[1, len(FEATURES)]
            )
        ],
        raw_input_contents=[values.tobytes()],
    )
    return [request.SerializeToString()]


async def _until_up(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)


def measure(callers: list[int], seconds: float) -> dict[str, Any]:
    """Start everything, measure everything, stop everything."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    echo = subprocess.Popen([sys.executable, "-c", ECHO, address])
    home = Path(os.environ.get("TWINPATH_HOME", ".twinpath")).resolve()
    try:
        return asyncio.run(_with_mesh(home, address, callers, seconds))
    finally:
        echo.terminate()
        echo.wait()


async def _with_mesh(
    home: Path, echo_address: str, callers: list[int], seconds: float
) -> dict[str, Any]:
    await _until_up(echo_address)
    found: dict[str, Any] = {"seconds": seconds}
    for layout in ("mesh", "edge"):
        found[layout] = await _in_layout(layout, home, echo_address, callers, seconds)
    found["script"] = found["mesh"].pop("script")
    return found


async def _in_layout(
    name: str, home: Path, echo_address: str, callers: list[int], seconds: float
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        layout = laptop(home, os.environ, runtime=Path(folder))
        sampled = {
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.1",
            "TWINPATH_LOG_LEVEL": "WARNING",
        }
        names = ("router", "features", "local", "remote", "audit")
        edge = name == "edge"
        options = MeshOptions(layout, edge=edge, extra=dict.fromkeys(names, sampled))
        async with Mesh(options) as mesh:
            rows = await _measure(mesh, echo_address, callers, seconds)
            steady = await _steady(mesh, max(row["mesh"]["rate"] for row in rows), seconds)
            script = None if edge else await _script(mesh, seconds)
            return {"rows": rows, "steady": steady, "script": script}


async def _measure(
    mesh: Mesh, echo_address: str, callers: list[int], seconds: float
) -> list[dict[str, Any]]:
    headers = [("authorization", f"Bearer {mesh.token('caller')}")]
    router, triton = mesh.wiring.services["router"], mesh.wiring.triton_url
    requests, raw = decisions(), direct()
    pids = {name: process.pid for name, process in mesh.processes.items() if process.pid}
    rows: list[dict[str, Any]] = []
    await closed_loop(router, INFER, requests, callers=16, seconds=3, metadata=headers)
    for count in callers:
        bare = await closed_loop(
            echo_address, "/bench.Echo/Echo", [requests[0]], callers=count, seconds=seconds
        )
        straight = await closed_loop(triton, TRITON_INFER, raw, callers=count, seconds=seconds)
        before = {name: cpu_seconds([pid]) for name, pid in pids.items()}
        whole = await closed_loop(
            router, INFER, requests, callers=count, seconds=seconds, warm_s=0, metadata=headers
        )
        cpu = {
            name: (cpu_seconds([pid]) - before[name]) * 1e3 / max(whole.answered, 1)
            for name, pid in pids.items()
        }
        rows.append(
            {
                "callers": count,
                "mesh": _facts(whole),
                "echo": _facts(bare),
                "triton": _facts(straight),
                "cpu_ms_per_decision": sum(cpu.values()),
                "cpu_ms_by_process": cpu,
                "rate_to_echo": whole.rate / bare.rate,
                "p50_to_echo": whole.p50_ms / bare.p50_ms,
            }
        )
    return rows


async def _steady(mesh: Mesh, rate: float, seconds: float) -> dict[str, Any]:
    """Ask at half of the rate that was reached, evenly: what callers wait on a usual day."""
    headers = [("authorization", f"Bearer {mesh.token('caller')}")]
    router = mesh.wiring.services["router"]
    load = await open_loop(
        router, INFER, decisions(), rate=rate / 2, seconds=seconds, metadata=headers
    )
    return _facts(load)


async def _script(mesh: Mesh, seconds: float) -> Any:
    """Run the hand-written script against the mesh's own stores; None if it failed."""
    triton = mesh.wiring.triton_url
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", SCRIPT, "feature_repo", triton, str(seconds), json.dumps(FEATURES)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TWINPATH_FEAST_REDIS": mesh.wiring.feast_address},
    )
    if done.returncode:
        sys.stderr.write(done.stderr[-2000:])
        return None
    return json.loads(done.stdout.splitlines()[-1])


def _facts(load: Load) -> dict[str, Any]:
    return {**asdict(load), "rate": load.rate}


LAYOUTS = {"mesh": "a process for each service", "edge": "all services in one process"}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables and the targets."""
    for layout, words in LAYOUTS.items():
        rows = result[layout]["rows"]
        _show_rates(f"{layout}, {words}: decisions against what they are made of", rows, console)
        _show_cpu(rows, console)
        steady = result[layout]["steady"]
        console.print(
            f"at {steady['rate']:.0f}/s, evenly, half of what it can do: "
            f"p50 {steady['p50_ms']:.1f} ms, p99 {steady['p99_ms']:.1f} ms"
        )
        for sentence, met in targets(rows):
            console.print(f"{'met    ' if met else 'NOT MET'}  {layout}, {sentence}")
    if result["script"]:
        script = result["script"]
        console.print(
            f"a hand-written script (Feast SDK + tritonclient, no policy, no record, 1 caller): "
            f"{script['rate']:.0f}/s, p50 {script['p50_ms']:.2f} ms"
        )


def _show_rates(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=title)
    for name in ("callers", "decisions/s", "p50 ms", "p99 ms", "echo/s", "Triton/s", "of echo"):
        table.add_column(name, justify="right")
    table.add_column("p50 x echo", justify="right")
    table.add_column("CPU ms", justify="right")
    for row in rows:
        mesh = row["mesh"]
        table.add_row(
            str(row["callers"]),
            f"{mesh['rate']:,.0f}" + (f" ({mesh['failed']} failed)" if mesh["failed"] else ""),
            f"{mesh['p50_ms']:.2f}",
            f"{mesh['p99_ms']:.2f}",
            f"{row['echo']['rate']:,.0f}",
            f"{row['triton']['rate']:,.0f}",
            f"{row['rate_to_echo']:.3f}",
            f"{row['p50_to_echo']:.1f}",
            f"{row['cpu_ms_per_decision']:.2f}",
        )
    console.print(table)


def _show_cpu(rows: list[dict[str, Any]], console: Console) -> None:
    """Print where a decision's processor time goes."""
    table = Table(title="CPU ms of a decision, by process")
    table.add_column("callers", justify="right")
    names = sorted(
        rows[-1]["cpu_ms_by_process"], key=lambda name: -rows[-1]["cpu_ms_by_process"][name]
    )
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        spent = row["cpu_ms_by_process"]
        table.add_row(str(row["callers"]), *(f"{spent[name]:.2f}" for name in names))
    console.print(table)


def targets(rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Return each target that this run can judge, with what was found, and whether it was met."""
    by = {row["callers"]: row for row in rows}
    found = []
    if 32 in by:
        share = by[32]["rate_to_echo"]
        found.append((f"32 callers: {share:.3f} x the echo's rate (>= 0.25)", share >= 0.25))
    if 1 in by:
        times = by[1]["p50_to_echo"]
        found.append((f"1 caller: {times:.1f} x the echo's p50 (<= 8)", times <= 8))
    if 1 in by and 32 in by:
        falls = by[1]["cpu_ms_per_decision"] / by[32]["cpu_ms_per_decision"]
        found.append((f"CPU of a decision falls {falls:.1f} x from 1 to 32 (>= 2)", falls >= 2))
    return found


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="for each measurement")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--out", type=Path, default=Path(".twinpath/bench/mesh.json"))
    arguments = parser.parse_args()
    result = measure(arguments.callers, arguments.seconds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result, Console(width=100))
    return int(not all(met for _, met in targets(result["mesh"]["rows"])))


if __name__ == "__main__":
    raise SystemExit(main())
