"""What the remote path adds to a direct call: `python -m tests.load.remote_bench`.

In one run, on one machine, each a process of its own: a bare grpc.aio echo, the stand-in vendor, a
state store, the remote service with grants, detectors and limits on. Against the same stand-in,
direct calls by aiohttp are the baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import redis.asyncio
import uvloop

from services.chassis import validation
from services.chassis.clock import SystemClock
from services.chassis.identity import read_public_keys
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.cli.embedded.valkey import Valkey
from services.remote import oip_body, providers
from services.remote.catalog import Model
from services.remote.catalog import load as load_catalog
from services.remote.grants import GrantUse, GrantVerifier
from services.remote.limit_store import LocalStore, RedisStore
from services.remote.limits import Limits
from services.remote.provider import Ask
from services.remote.tensor_fit import check_inputs
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
# What 100,000 calls' worth of fragments may come to.
_GROWTH_MIB = 8.0
_REMEMBERED_S = 65.0  # longer than a grant is good for, with its leeway
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


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def best_us(step: Callable[[], object]) -> float:
    """Return what a step takes in microseconds, alone and warm."""
    laps = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(300):
            step()
        laps.append((time.perf_counter() - begin) / 300 * 1e6)
    return min(laps)


async def lap_us(step: Call) -> float:
    """Return what a step that waits for others takes in microseconds, once."""
    begin = time.perf_counter()
    await step()
    return (time.perf_counter() - begin) * 1e6


async def shares(
    stack: AsyncExitStack, keys: MeshKeys, catalog: Path, state_url: str, direct: Call
) -> dict[str, float]:
    """Return what single steps add, in microseconds, each alone and warm in this process."""
    clock = SystemClock()
    provider = load_catalog(catalog, providers.mistakes)["standin"]
    model = provider.find("echo", "1")
    assert model is not None
    item = make_item(keys)
    request = inference_pb2.InferRequest(items=[item])
    verifier = GrantVerifier(read_public_keys(keys.grant_keys), clock)
    prompt = "The patient reports mild symptoms since last week. " * 10

    client = redis.asyncio.Redis.from_url(state_url)
    stack.push_async_callback(client.aclose)
    store = RedisStore(client, LocalStore(clock), clock, 1.0)
    stack.push_async_callback(store.aclose)
    limits = Limits(store, shared=True)
    adapter = providers.make(provider, clock, 1 << 20)
    stack.push_async_callback(adapter.aclose)
    ask = Ask(model, item.input.tensors, 10.0, {})

    async def limited() -> None:
        use = GrantUse(secrets.token_hex(16), 60.0)
        await limits.acquire(provider, model, ("bench", "bench"), 10, grant=use)

    async def adapted() -> None:
        await adapter.infer(ask, inference_pb2.Metering())

    await adapted()
    over = []
    for _ in range(400):  # by turns, so that what else goes on hits both
        first, second = await lap_us(adapted), await lap_us(direct)
        over.append(first - second)
    return {
        "contract's rules checked": best_us(lambda: validation.check(request)),
        "grant verified": best_us(lambda: verifier.verify(item)),
        "digest recomputed": best_us(lambda: digest.fits(item.input)),
        "tensors compared with the catalog": best_us(
            lambda: check_inputs(item.input.tensors, model.inputs)
        ),
        "detectors on 500 characters": best_us(lambda: list(detectors.find(prompt))),
        "limits and grant's use, with the store": statistics.median(
            [await lap_us(limited) for _ in range(400)]
        ),
        "adapter, beyond its HTTP call": statistics.median(over),
        "  of it, body rendered": best_us(
            lambda: oip_body.render_binary(model, item.input.tensors)
        ),
    }


async def bench(calls: int, soak: int) -> int:
    """Run all; returns the exit status."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = mesh_keys(folder)
        echo_port, vendor_port, remote_port = free_port(), free_port(), free_port()
        echo_pid = await start(stack, "echo", ["-c", _ECHO_SERVER, str(echo_port)], folder)
        vendor_pid = await start(
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

        pids = {"bench": os.getpid(), "echo": echo_pid, "standin": vendor_pid, "remote": pid}

        echo_channel = await stack.enter_async_context(client(f"127.0.0.1:{echo_port}"))
        echo: Any = echo_channel.unary_unary(_ECHO)
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

        show(f"{'':65}{'CPU ms per call of':>18}")
        header = "".join(f"{name:>9}" for name in ("p50 ms", "p99 ms", "calls/s", *pids))
        show(f"{'':38}{header}")
        p50, rates = {}, {}
        for callers in (1, 64):
            for label, call in (("bare echo", say), ("direct", direct), ("remote path", remote)):
                if call is remote:
                    items.extend(make_item(keys) for _ in range(calls))
                used = [cpu_s(one) for one in pids.values()]
                middle, high, rate = await measure(call, callers, calls)
                used = [cpu_s(one) - was for one, was in zip(pids.values(), used, strict=True)]
                p50[label, callers], rates[label, callers] = middle, rate
                title = f"{label}, {callers} caller{'s' * (callers > 1)}"
                spent = "".join(f"{seconds / calls * 1e3:9.2f}" for seconds in used)
                show(f"{title:38}{middle:9.2f}{high:9.2f}{rate:9.0f}{spent}")
        added = p50["remote path", 1] - p50["direct", 1]
        allowed = 2 * p50["bare echo", 1]
        show(f"\nadded p50 over a direct call: {added:.2f} ms; allowed: {allowed:.2f} ms")
        show(f"at 64 callers: {rates['remote path', 64]:.0f}/s; wanted: 800/s")
        show("each step's share, alone and warm:")
        for name, micros in (await shares(stack, keys, catalog, store.url, direct)).items():
            show(f"  {name:40}{micros:6.0f} us")
        flat = await soaked(remote, pid, soak) if soak else True
        return int(added > allowed or rates["remote path", 64] < 800 or not flat)


async def soaked(remote: Call, pid: int, calls: int) -> bool:
    """Make many calls; show the service's memory at twenty places; tell whether it stays flat.

    Used grants are remembered for a minute: until the first of them are forgotten, and for a
    fifth of the calls at least, memory is still filling up. A run that is over by then shows
    nothing, and does not pass.
    """
    begin, laps = time.monotonic(), 20
    warm: float | None = None
    now = peak = 0.0
    for lap in range(1, laps + 1):
        await measure(remote, 32, calls // laps)
        now, passed = rss_mib(pid), time.monotonic() - begin
        show(f"memory after {lap * calls // laps:7} calls, {passed:4.0f} s: {now:7.1f} MiB")
        if warm is not None:
            peak = max(peak, now)
        elif passed > _REMEMBERED_S and lap >= laps // 5:
            warm = peak = now
            show("  from here on it is warm")
    if warm is None:
        show("too few calls: nothing was forgotten yet")
        return False
    show(
        f"grown since it was warm: {now - warm:.1f} MiB at the end, {peak - warm:.1f} at most; "
        f"allowed: {_GROWTH_MIB} MiB"
    )
    return peak - warm <= _GROWTH_MIB


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="calls of each measurement")
    parser.add_argument("--soak", type=int, default=0, help="further calls, for memory")
    given = parser.parse_args()
    return uvloop.run(bench(given.calls, given.soak))


if __name__ == "__main__":
    sys.exit(main())
