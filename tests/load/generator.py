"""Load, closed-loop and open-loop.

Closed: N callers, each asks again as soon as it is answered; that finds the rate, and hides waits,
because a slow server is asked less. Open: requests come at their times, whatever became of those
before; latency counts from the time at which a request was due.

Requests are serialized once and answers are not parsed, so that what is measured is the server.
The same generator, with the same number of callers, asks everything that is compared.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio


@dataclass(frozen=True, slots=True)
class Load:
    """What came out. Latencies in milliseconds, rate per second."""

    callers: int
    answered: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds


async def closed_loop(
    address: str,
    method: str,
    requests: Sequence[bytes],
    *,
    callers: int,
    seconds: float,
    warm_s: float = 1.0,
    metadata: Sequence[tuple[str, str]] = (),
) -> Load:
    """Ask one method for a while over one channel; the first `warm_s` seconds don't count."""
    latencies: list[float] = []
    failed = 0
    clock = time.perf_counter
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(method)
        begin = clock() + warm_s
        end = begin + seconds

        async def caller(number: int) -> None:
            nonlocal failed
            at = number
            while (start := clock()) < end:
                at += callers
                try:
                    await call(requests[at % len(requests)], metadata=metadata, timeout=10)
                except grpc.aio.AioRpcError:
                    failed += start >= begin
                    continue
                if start >= begin:
                    latencies.append(clock() - start)

        await asyncio.gather(*(caller(n) for n in range(callers)))
    return _load(callers, latencies, failed, seconds)


async def open_loop(
    address: str,
    method: str,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    metadata: Sequence[tuple[str, str]] = (),
) -> Load:
    """Ask one method `rate` times a second, evenly; `callers` of the result is 0."""
    latencies: list[float] = []
    failed = 0
    clock = time.perf_counter
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(method)

        async def ask(due: float, request: bytes) -> None:
            nonlocal failed
            try:
                await call(request, metadata=metadata, timeout=10)
            except grpc.aio.AioRpcError:
                failed += 1
            else:
                latencies.append(clock() - due)

        begin = clock()
        async with asyncio.TaskGroup() as asked:
            for number in range(int(rate * seconds)):
                due = begin + number / rate
                await asyncio.sleep(max(0.0, due - clock()))
                asked.create_task(ask(due, requests[number % len(requests)]))
    return _load(0, latencies, failed, seconds)


def _load(callers: int, latencies: list[float], failed: int, seconds: float) -> Load:
    latencies.sort()
    count = len(latencies)
    return Load(
        callers=callers,
        answered=count,
        failed=failed,
        seconds=seconds,
        p50_ms=statistics.median(latencies) * 1e3 if count else 0.0,
        p99_ms=latencies[min(count - 1, int(count * 0.99))] * 1e3 if count else 0.0,
    )


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time that processes have used so far, user and system, in seconds."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100.0
