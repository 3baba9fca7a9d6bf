"""What the remote path adds to a direct call: `python -m tests.load.remote_bench`.

In one run, on one machine, each a process of its own: a bare grpc.aio echo, the stand-in vendor, a
state store, the remote service with grants, detectors and limits on. Against the same stand-in,
direct calls by aiohttp are the baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import grpc.aio

from services.chassis.clock import SystemClock
from services.chassis.identity import read_public_keys
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.cli.embedded.valkey import Valkey
from services.remote import oip_body
from services.remote.catalog import Model
from services.remote.grants import GrantVerifier
from tests.support import ROOT, MeshKeys, client, free_port, mesh_keys
from tests.unit.remote.support import VENDOR_TOKEN, make_item, write_catalog
from twinpath.inference import detectors, digest
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

_ECHO = "/bench.Echo/Say"
_ECHO_SERVER = """
import asyncio, sys, grpc, uvloop
async def main():
    async def say(request, context): return request
    handler = grpc.unary_unary_rpc_method_handler(say)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Say": handler}),))
    server.add_insecure_port("127.0.0.1:" + sys.argv[1])
    await server.start()
    await server.wait_for_termination()
uvloop.run(main())
"""
_LIMITS = (
    "    limits: {requests_per_minute: 1000000000, tokens_per_minute: 1000000000,"
    " per_caller: {requests_per_minute: 1000000000}}\n"
)
Call = Callable[[], Awaitable[None]]


async def measure(call: Call, callers: int, calls: int) -> tuple[float, float, float]:
    """Return p50 and p99 in milliseconds, and calls per second."""
    times: list[float] = []
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            start = time.perf_counter()
            await call()
            times.append(time.perf_counter() - start)

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    rate = calls / (time.perf_counter() - begin)
    cuts = statistics.quantiles(times, n=100)
    return cuts[49] * 1e3, cuts[98] * 1e3, rate


def show(line: str) -> None:
    """Print a line."""
    sys.stdout.write(line + "\n")


def rss_mib(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


async def start(stack: AsyncExitStack, name: str, argv: list[str], folder: Path, **env: str) -> int:
    """Start a process that ends with the stack; return its id."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    spec = ProcessSpec(
        name, (sys.executable, *argv), folder / f"{name}.log", env=clean | env, cwd=ROOT
    )
    process = ManagedProcess(spec)
    await process.start()
    stack.push_async_callback(process.stop)
    assert process.pid is not None
    return process.pid


async def until(call: Call) -> None:
    """Wait until a call succeeds."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await call()
            except (aiohttp.ClientError, grpc.aio.AioRpcError, OSError, AssertionError):
                await asyncio.sleep(0.1)


def shares(keys: MeshKeys) -> dict[str, float]:
    """Return what single steps take, in microseconds, each alone and warm."""
    item = make_item(keys)
    verifier = GrantVerifier(read_public_keys(keys.grant_keys), SystemClock())
    entry = {"name": "features", "datatype": "FP32", "shape": [-1, -1]}
    model = Model.model_validate(
        {"name": "echo", "version": "1", "inputs": [entry], "outputs": [entry]}
    )
    prompt = "The patient reports mild symptoms since last week. " * 10
    steps: dict[str, Callable[[], object]] = {
        "grant verified": lambda: verifier.verify(item),
        "digest recomputed": lambda: digest.fits(item.input),
        "detectors on 500 characters": lambda: list(detectors.find(prompt)),
        "body rendered": lambda: oip_body.render_binary(model, item.input.tensors),
    }
    found = {}
    for name, step in steps.items():
        laps = []
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(500):
                step()
            laps.append((time.perf_counter() - begin) / 500 * 1e6)
        found[name] = min(laps)
    return found


async def bench(calls: int, soak: int) -> int:
    """Run all; returns the exit status."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = mesh_keys(folder)
        echo_port, vendor_port, remote_port = free_port(), free_port(), free_port()
        await start(stack, "echo", ["-c", _ECHO_SERVER, str(echo_port)], folder)
        await start(
            stack, "standin", ["-m", "services.standin"], folder,
            TWINPATH_STANDIN_PORT=str(vendor_port), TWINPATH_STANDIN_TOKEN=VENDOR_TOKEN,
        )  # fmt: skip
        store = Valkey("state", folder / "valkey")
        await store.start()
        stack.push_async_callback(store.stop)
        vendor = f"http://127.0.0.1:{vendor_port}"
        catalog = write_catalog(folder, vendor)
        file = catalog / "providers" / "standin.yaml"
        text = file.read_text()
        name = '  - name: echo\n    version: "1"\n'
        assert name in text
        file.write_text(text.replace(name, name + _LIMITS, 1))
        address = f"127.0.0.1:{remote_port}"
        pid = await start(
            stack, "remote", ["-m", "services.remote"], folder, **keys.environment(),
            TWINPATH_REMOTE_LISTEN=address, TWINPATH_CATALOG=str(catalog),
            TWINPATH_STATE_URL=store.url,
        )  # fmt: skip

        echo_channel = await stack.enter_async_context(client(f"127.0.0.1:{echo_port}"))
        echo = echo_channel.unary_unary(_ECHO)
        channel = await stack.enter_async_context(client(address, keys.token("service:router")))
        stub = inference_pb2_grpc.InferenceStub(channel)
        connector = aiohttp.TCPConnector(limit=100)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))

        item = make_item(keys)
        entry = {"name": "features", "datatype": "FP32", "shape": [-1, -1]}
        model = Model.model_validate(
            {"name": "echo", "version": "1", "inputs": [entry], "outputs": [entry]}
        )
        body = oip_body.render_binary(model, item.input.tensors)
        headers = {**body.headers, "Authorization": f"Bearer {VENDOR_TOKEN}"}
        payload = item.SerializeToString()

        async def say() -> None:
            assert await echo(payload) == payload

        async def direct() -> None:
            url = f"{vendor}/v2/models/echo/versions/1/infer"
            async with http.post(url, data=body.content, headers=headers) as reply:
                await reply.read()
                assert reply.status == 200

        # Grants serve once: they are signed before the clock runs.
        items: list[inference_pb2.InferItem] = []

        async def remote() -> None:
            one = items.pop() if items else make_item(keys)
            request = inference_pb2.InferRequest(items=[one])
            (result,) = (await stub.Infer(request, timeout=10)).results
            assert result.status.code == 0, result.status

        for call in (say, direct, remote):
            await until(call)
            await measure(call, 4, 300)

        show(f"{'':38}{'p50 ms':>9}{'p99 ms':>9}{'calls/s':>9}")
        p50, rates = {}, {}
        for callers in (1, 64):
            for label, call in (("bare echo", say), ("direct", direct), ("remote path", remote)):
                if call is remote:
                    items.extend(make_item(keys) for _ in range(calls))
                middle, high, rate = await measure(call, callers, calls)
                p50[label, callers], rates[label, callers] = middle, rate
                title = f"{label}, {callers} caller{'s' * (callers > 1)}"
                show(f"{title:38}{middle:9.2f}{high:9.2f}{rate:9.0f}")
        added = p50["remote path", 1] - p50["direct", 1]
        allowed = 2 * p50["bare echo", 1]
        show(f"\nadded p50 over a direct call: {added:.2f} ms; allowed: {allowed:.2f} ms")
        show(f"at 64 callers: {rates['remote path', 64]:.0f}/s; wanted: 800/s")
        for name, micros in shares(keys).items():
            show(f"  of it, {name}: {micros:.0f} us")
        if soak:
            before = rss_mib(pid)
            await measure(remote, 32, soak)
            show(f"memory over {soak} calls: {before:.1f} -> {rss_mib(pid):.1f} MiB")
        return int(added > allowed or rates["remote path", 64] < 800)


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="calls of each measurement")
    parser.add_argument("--soak", type=int, default=0, help="further calls, for memory")
    given = parser.parse_args()
    return asyncio.run(bench(given.calls, given.soak))


if __name__ == "__main__":
    sys.exit(main())
