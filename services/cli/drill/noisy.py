"""The noisy neighbour: a batch job beside interactive requests, on the same Triton.

It asks two models that the interactive requests don't use: one that computes, one that takes its
time. So what is seen is what they share: the machine, the router, the local path, Triton's door.
"""

from __future__ import annotations

import asyncio
import itertools

import grpc

from services.cli.drill import mix
from services.cli.drill.arena import Arena
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2

_ITEMS = 64
_TIMEOUT_S = 10.0
_PAUSE_S = 0.1


class Noise:
    """A batch job that runs until it is ended: one call after another, for each model."""

    def __init__(self) -> None:
        self._jobs: list[asyncio.Task[None]] = []

    async def begin(self, arena: Arena) -> None:
        """Start it."""
        self._jobs = [asyncio.create_task(_job(arena, task)) for task in (mix.TUMOUR, mix.SLOW)]

    async def end(self, _: Arena) -> None:
        """Stop it."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        self._jobs = []


async def _job(arena: Arena, task: str) -> None:
    for number in itertools.count(step=_ITEMS):
        request = router_pb2.BatchInferRequest()
        for item in range(number, number + _ITEMS):
            asked = mix.about(task, item)
            asked.priority = context_pb2.PRIORITY_BATCH
            asked.only_path = context_pb2.PATH_LOCAL
            request.items.add(id=str(item), request=asked)
        try:
            await arena.stage.router.BatchInfer(request, timeout=_TIMEOUT_S)
        except grpc.RpcError:
            await asyncio.sleep(_PAUSE_S)  # refused as a whole; it comes again
