"""What the local path adds to Triton: `make bench`, or `python -m tests.load.local_bench`.

One run, one machine, each a process of its own: a bare grpc.aio echo, the real Triton with a small
ONNX model, the local service over it. Asked by one generator:

  unary    requests of one item, at several callers, against the echo's: wanted 0.5 of its rate;
  batch    requests of 64 items, against the rows a second that Triton gives when it is asked
           directly, a request a row: wanted 0.8 of them. Beside it, for information, the rows a
           second of direct requests of 64 rows each, which no per-item contract can reach;
  added    p50 at one caller over direct tritonclient's: wanted 1.5 of the echo's round trip.

Prints a table, writes JSON. Absolute figures are this machine's and of this hour; compare the
ratios. A busy machine says little: the service is one process of five that want the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import InferInput, service_pb2
from tritonclient.grpc.aio import InferenceServerClient

from deploy.training.repository import triton_config
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.cli.embedded.triton import Triton, TritonOptions
from services.cli.launcher.readiness import wait_for
from tests import triton_models
from tests.load.generator import Load, closed_loop, cpu_seconds
from tests.load.mesh_bench import ECHO, TRITON_INFER
from tests.support import ROOT, MeshKeys, free_port, mesh_keys
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

INFER = "/twinpath.inference.v1.Inference/Infer"
ECHO_METHOD = "/bench.Echo/Echo"
MODEL, WIDTH, BATCH = "linear", 13, 64
WANTED = {"unary": 0.5, "batch": 0.8, "added": 1.5}


def write_model(root: Path) -> None:
    """Write a linear model of thirteen features, with the configuration of the trained ones."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [WIDTH, 1], np.linspace(-1, 1, WIDTH))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "w"], ["progression"])],
        MODEL,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("progression", TensorProto.FLOAT, ["N", 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = root / MODEL / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    card = {
        "name": MODEL,
        "summary": "a linear model for benchmarks",
        "task": "none",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, WIDTH]}],
        "outputs": [{"name": "progression", "datatype": "FP32", "shape": [-1, 1]}],
    }
    (root / MODEL / "config.pbtxt").write_text(triton_config(card))


def direct(rows: int) -> bytes:
    """A request for Triton, serialized."""
    values = np.zeros((rows, WIDTH), np.float32) + np.linspace(0, 1, WIDTH, dtype=np.float32)
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="features", datatype="FP32", shape=[rows, WIDTH]
    )
    request = service_pb2.ModelInferRequest(
        model_name=MODEL, inputs=[tensor], raw_input_contents=[values.tobytes()]
    )
    return bytes(request.SerializeToString())


def batch(items: int, start: int = 0) -> bytes:
    """A request for the local path, as the router makes it, serialized."""
    request = inference_pb2.InferRequest()
    for number in range(start, start + items):
        values = np.linspace(0, 1 + number % 50, WIDTH, dtype=np.float32)[None]
        given = tensors.normalize([tensors.from_numpy("features", values)])
        item = request.items.add(model=MODEL, version="1", decision_id=f"decision-{number}")
        item.context.id = f"item-{number}"
        item.context.time_left_us = 5_000_000
        item.input.tensors.extend(given)
        item.input.digest = digest.digest(given)
    return bytes(request.SerializeToString())


async def by_tritonclient(address: str, seconds: float) -> float:
    """Return p50 in milliseconds of NVIDIA's own asyncio client, one caller."""
    taken = []
    values = np.linspace(0, 1, WIDTH, dtype=np.float32)[None]
    async with InferenceServerClient(address) as triton:
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            tensor = InferInput("features", list(values.shape), "FP32")
            tensor.set_data_from_numpy(values)
            (await triton.infer(MODEL, [tensor])).as_numpy("progression")
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[len(taken) // 5 :]) * 1e3


async def by_stub(address: str, token: str, seconds: float) -> float:
    """Return p50 in milliseconds of the local path's own client, one caller."""
    taken = []
    request = inference_pb2.InferRequest.FromString(batch(1))
    metadata = [("authorization", f"Bearer {token}")]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            (result,) = (await stub.Infer(request, timeout=5, metadata=metadata)).results
            assert result.status.code == 0, result.status
            tensors.to_numpy(result.outputs[0])
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[len(taken) // 5 :]) * 1e3


class Bench:
    """The three servers."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.keys: MeshKeys = mesh_keys(folder)
        self.echo = f"127.0.0.1:{free_port()}"
        self.local = f"127.0.0.1:{free_port()}"
        self.triton: Triton
        self.pid = 0

    async def start(self) -> None:
        """Start them, and stop them with the stack."""
        echo = ProcessSpec(
            "echo", (sys.executable, "-c", ECHO, self.echo), self._folder / "echo.log"
        )
        await self._keep(ManagedProcess(echo))
        write_model(self._folder / "models")
        triton_models.echo(self._folder / "models")
        self.triton = Triton(
            TritonOptions(
                self._folder / "models",
                self._folder / "run",
                triton_models.TRITON_ENV,
                backends=triton_models.BACKENDS,
            )
        )
        await self._stack.enter_async_context(self.triton)
        spec = ProcessSpec(
            "local",
            (sys.executable, "-m", "services.local"),
            self._folder / "local.log",
            env=self.keys.environment()
            | {
                "PATH": "/usr/bin:/bin",
                "TWINPATH_LOCAL_LISTEN": self.local,
                "TWINPATH_TRITON_URL": self.triton.url,
                "TWINPATH_TRITON_HTTP": self.triton.http_address,
                "TWINPATH_LOCAL_MACHINE_USD_PER_HOUR": "0.1",
            },
            cwd=ROOT,
        )
        self.pid = await self._keep(ManagedProcess(spec))
        token = self.keys.token("service:router")

        async def answers() -> bool:
            try:
                await by_stub(self.local, token, 0.1)
            except (grpc.aio.AioRpcError, AssertionError, statistics.StatisticsError):
                return False
            return True

        assert await wait_for(answers, timeout_s=60), "local did not answer"

    async def _keep(self, process: ManagedProcess) -> int:
        await process.start()
        self._stack.push_async_callback(process.stop)
        return process.pid or 0

    async def ask_local(
        self, request: list[bytes], callers: int, seconds: float
    ) -> tuple[Load, float]:
        """Return what came out, and the service's CPU time for each answer, in microseconds."""
        metadata = [("authorization", f"Bearer {self.keys.token('service:router')}")]
        before = cpu_seconds([self.pid])
        load = await closed_loop(
            self.local,
            INFER,
            request,
            callers=callers,
            seconds=seconds,
            metadata=metadata,
            warm_s=0.5,
        )
        share = seconds / (seconds + 0.5)
        cpu = (cpu_seconds([self.pid]) - before) * share * 1e6 / max(load.answered, 1)
        return load, cpu


async def measure(callers: list[int], seconds: float) -> dict[str, Any]:
    """Start everything, measure everything, stop everything."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(stack, folder)
        await bench.start()
        token = bench.keys.token("service:router")
        singles = [batch(1, number) for number in range(100)]
        wholes = [batch(BATCH, BATCH * number) for number in range(10)]
        await bench.ask_local(wholes, 2, 1)
        rows: list[dict[str, Any]] = []
        for count in callers:
            echo = await closed_loop(
                bench.echo, ECHO_METHOD, singles, callers=count, seconds=seconds
            )
            straight = await closed_loop(
                bench.triton.url, TRITON_INFER, [direct(1)], callers=count, seconds=seconds
            )
            unary, cpu = await bench.ask_local(singles, count, seconds)
            rows.append(
                {
                    "callers": count,
                    "echo": _facts(echo),
                    "triton": _facts(straight),
                    "local": _facts(unary),
                    "cpu_us_per_item": cpu,
                    "ratio": unary.rate / echo.rate,
                }
            )
        batches: list[dict[str, Any]] = []
        for count in (1, 4):
            many = await closed_loop(
                bench.triton.url, TRITON_INFER, [direct(BATCH)], callers=count, seconds=seconds
            )
            ours, cpu = await bench.ask_local(wholes, count, seconds)
            batches.append(
                {
                    "callers": count,
                    "triton_rows": many.rate * BATCH,
                    "local_rows": ours.rate * BATCH,
                    "failed": ours.failed,
                    "cpu_us_per_item": cpu / BATCH,
                }
            )
        echo_p50 = []
        client_p50, local_p50 = [], []
        for _ in range(3):  # in turns: what else the machine does hits them alike
            lap = max(seconds / 3, 1.0)
            one = await closed_loop(bench.echo, ECHO_METHOD, singles, callers=1, seconds=lap)
            echo_p50.append(one.p50_ms)
            client_p50.append(await by_tritonclient(bench.triton.url, lap))
            local_p50.append(await by_stub(bench.local, token, lap))
    added = statistics.median(local_p50) - statistics.median(client_p50)
    best_rows = max(row["triton"]["rate"] for row in rows)
    return {
        "seconds": seconds,
        "unary": rows,
        "batch": batches,
        "echo_p50_ms": statistics.median(echo_p50),
        "tritonclient_p50_ms": statistics.median(client_p50),
        "local_p50_ms": statistics.median(local_p50),
        "ratios": {
            "unary": max(row["ratio"] for row in rows if row["callers"] > 1),
            "batch": max(b["local_rows"] for b in batches) / best_rows,
            "batch_of_direct_batches": max(b["local_rows"] / b["triton_rows"] for b in batches),
            "added": added / statistics.median(echo_p50),
        },
        "wanted": WANTED,
    }


def _facts(load: Load) -> dict[str, Any]:
    return {**asdict(load), "rate": load.rate}


def show(result: dict[str, Any], console: Console) -> bool:
    """Print the tables; tell whether every target was met."""
    table = Table(title="the local path, an item a request (same run)")
    for name in ("callers", "echo /s", "Triton /s", "local /s", "failed", "of echo", "CPU µs"):
        table.add_column(name, justify="right")
    for row in result["unary"]:
        table.add_row(
            str(row["callers"]),
            f"{row['echo']['rate']:,.0f}",
            f"{row['triton']['rate']:,.0f}",
            f"{row['local']['rate']:,.0f}",
            str(row["local"]["failed"]),
            f"{row['ratio']:.2f}",
            f"{row['cpu_us_per_item']:.0f}",
        )
    console.print(table)
    for row in result["batch"]:
        console.print(
            f"{BATCH} items a request, {row['callers']} callers: {row['local_rows']:,.0f} items/s, "
            f"{row['cpu_us_per_item']:.1f} µs of CPU each; Triton asked for {BATCH} rows a request: "
            f"{row['triton_rows']:,.0f} rows/s"
        )
    console.print(
        f"p50, one caller: echo {result['echo_p50_ms']:.2f} ms, tritonclient "
        f"{result['tritonclient_p50_ms']:.2f} ms, local {result['local_p50_ms']:.2f} ms"
    )
    ratios = result["ratios"]
    held = {
        "unary": ratios["unary"] >= WANTED["unary"],
        "batch": ratios["batch"] >= WANTED["batch"],
        "added": ratios["added"] <= WANTED["added"],
    }
    lines = {
        "unary": "unary rate / echo's",
        "batch": "items/s in batches / direct rows/s, a request a row",
        "added": "added p50 / echo's round trip",
    }
    for name, text in lines.items():
        sign = "<=" if name == "added" else ">="
        mark = "[green]held[/]" if held[name] else "[red]not held[/]"
        console.print(f"{text}: {ratios[name]:.2f} (wanted {sign} {WANTED[name]})  {mark}")
    console.print(
        "for information, items/s in batches / direct rows/s, a request 64 rows: "
        f"{ratios['batch_of_direct_batches']:.2f}"
    )
    return all(held.values())


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--out", type=Path, default=Path(".twinpath/bench/local.json"))
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments.callers, arguments.seconds))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if show(result, Console(width=100)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
