"""CPU against GPU through the same service: `python -m tests.gpu.throughput`.

One Triton holds the same network twice, on CPU instances and on GPU ones (Python backend, torch);
the local path over it is asked by so many callers, in turns. Prints rows a second and latencies.
Needs torch with CUDA in the Triton environment (.venv-triton, or TWINPATH_TRITON_ENV).

Exit codes: 0 figures were printed; 2 there is no CUDA here, which is said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests import triton_models
from tests.local_path import Stub, ask, features, item, local, new_triton
from tests.support import mesh_keys

WIDTH = 1024
LAYERS = 6
MAX_BATCH = 256

MODEL = f"""
import json

import numpy as np
import torch
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        gpu = args["model_instance_kind"] == "GPU"
        self.device = f"cuda:{{args['model_instance_device_id']}}" if gpu else "cpu"
        torch.manual_seed(7)
        layers = []
        for _ in range({LAYERS}):
            layers += [torch.nn.Linear({WIDTH}, {WIDTH}), torch.nn.ReLU()]
        layers.append(torch.nn.Linear({WIDTH}, 1))
        self.net = torch.nn.Sequential(*layers).to(self.device).eval()

    def execute(self, requests):
        arrays = [r.inputs()[0].as_numpy() for r in requests]
        with torch.inference_mode():
            given = torch.from_numpy(np.concatenate(arrays)).to(self.device)
            said = self.net(given).cpu().numpy()
        cuts = np.cumsum([len(a) for a in arrays])[:-1]
        return [pb.InferenceResponse([pb.Tensor("y", part)]) for part in np.split(said, cuts)]
"""

CONFIG = """max_batch_size: {batch}
input {{ name: "features" data_type: TYPE_FP32 dims: [ {width} ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }}
instance_group [ {{ count: 1 kind: {kind} }} ]
dynamic_batching {{ max_queue_delay_microseconds: 500 }}
"""


def cuda(environment: Path) -> str:
    """Return the name of the first GPU that torch sees there; empty: none."""
    code = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    command = [str(environment / "bin" / "python"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


async def load(stub: Stub, model: str, rows: int, callers: int, seconds: float) -> dict[str, float]:
    """Ask with so many callers for some seconds; rows a second, latencies in milliseconds."""
    given = features(*np.random.default_rng(1).normal(0, 1, (rows, WIDTH)).tolist())
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            [result] = await ask(stub, item(model, given))
            if result.status.code:
                raise RuntimeError(f"{model}: {result.status.message}")
            took.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed = time.perf_counter() - started
    cuts = statistics.quantiles(took, n=100)
    return {
        "rows_per_s": round(len(took) * rows / elapsed),
        "p50_ms": round(statistics.median(took) * 1000, 2),
        "p99_ms": round(cuts[98] * 1000, 2),
    }


async def measure(folder: Path, seconds: float) -> list[dict[str, object]]:
    """Start everything, and measure both in turns."""

    def network(kind: str, name: str) -> None:
        config = CONFIG.format(batch=MAX_BATCH, width=WIDTH, kind=kind)
        triton_models.write_model(folder / "models", name, MODEL, config)

    network("KIND_CPU", "on_cpu")
    network("KIND_GPU", "on_gpu")
    server = new_triton(folder, triton_models.echo)
    found: list[dict[str, object]] = []
    async with server, local(mesh_keys(folder / "keys"), server.url) as stub:
        for model in ("on_cpu", "on_gpu"):
            await load(stub, model, 1, 2, 2.0)  # to be warm
        for rows, callers in ((1, 1), (1, 16), (64, 1), (64, 16)):
            for model in ("on_cpu", "on_gpu"):
                figures = await load(stub, model, rows, callers, seconds)
                found.append({"model": model, "rows": rows, "callers": callers, **figures})
    return found


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    gpu = cuda(triton_models.TRITON_ENV)
    if not gpu:
        sys.stderr.write(
            f"no CUDA: torch in {triton_models.TRITON_ENV} sees no GPU (or is not there); "
            "nothing was measured\n"
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="twinpath-gpu-") as folder:
        found = asyncio.run(measure(Path(folder), args.seconds))
    if args.json:
        sys.stdout.write(json.dumps({"gpu": gpu, "network": f"{LAYERS} x {WIDTH}", "runs": found}))
        return 0
    sys.stdout.write(f"{gpu}; a network of {LAYERS} layers of {WIDTH}, FP32, through local\n")
    for run in found:
        sys.stdout.write("  ".join(f"{name} {value}" for name, value in run.items()) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
