"""The noisy neighbour: a batch job that says what it is, and ends when it is told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from services.cli.drill import mix
from services.cli.drill.noisy import Noise
from services.cli.drill.stats import Sample, report
from services.cli.drill.targets import Targets, judge
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2


async def test_the_noise_is_a_batch_job_on_the_local_path_and_ends() -> None:
    """Two jobs, each one call after the other, of batch priority; none after its end."""
    asked: list[router_pb2.BatchInferRequest] = []

    async def batch_infer(request: router_pb2.BatchInferRequest, timeout: float) -> None:
        assert timeout > 0
        asked.append(request)
        await asyncio.sleep(0.001)

    router = SimpleNamespace(BatchInfer=batch_infer)
    arena: Any = SimpleNamespace(stage=SimpleNamespace(router=router))
    noise = Noise()
    await noise.begin(arena)
    while len(asked) < 6:  # noqa: ASYNC110 - a count, not an event
        await asyncio.sleep(0.001)
    await noise.end(arena)
    count = len(asked)
    await asyncio.sleep(0.01)
    assert len(asked) == count
    items = [item for request in asked for item in request.items]
    assert {item.request.task for item in items} == {mix.TUMOUR, mix.SLOW}
    assert {item.request.priority for item in items} == {context_pb2.PRIORITY_BATCH}
    assert {item.request.only_path for item in items} == {context_pb2.PATH_LOCAL}


def test_the_p99_is_compared_with_that_of_before() -> None:
    """Twice is borne, more is not; without answers nothing is held."""

    def seen(during_s: float, *, ok: bool = True) -> bool:
        samples = [Sample(intended_s=n / 10, ended_s=n / 10 + 0.01, ok=True) for n in range(20)]
        samples += [
            Sample(intended_s=2 + n / 10, ended_s=2 + n / 10 + during_s, ok=ok) for n in range(20)
        ]
        found = report(samples, fault_s=2.0, healed_s=4.0, end_s=6.0)
        (check,) = [
            c for c in judge(Targets(success=0.0, p99_times=2.0), found, 0) if "p99" in c.name
        ]
        return check.held

    assert seen(0.019)
    assert not seen(0.021)
    assert not seen(0.01, ok=False)
