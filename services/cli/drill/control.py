"""The positive control: with the policy switched off, the counter at the vendor must move.

A count of zero proves nothing if the counter can't count. So the barriers are taken down one by
one, on a copy of the catalog, and the same marked requests are sent:

1. The policy admits everybody. Restricted requests are still refused by the remote service, which
   looks at the grant's data class itself: the count stays zero.
2. The requests call themselves confidential, and the stand-in vendor's file takes that class (no
   file can take `restricted`, it would not load). Nothing stands in the way now: they arrive, and
   the counter counts them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.cli.drill import mix
from services.cli.drill.arena import Arena
from services.cli.launcher.readiness import wait_for
from twinpath.common.v1 import context_pb2

_REQUESTS = 50
_RELOAD_S = 3.0
_OPEN = """rules:
  - id: everything_is_admitted
    message: The policy is switched off, for the drills' positive control.
    require: "true"
"""


@dataclass(frozen=True, slots=True)
class Control:
    """How many of the marked requests arrived. `armed` must be above zero, `remote_alone` zero."""

    sent: int
    remote_alone: int
    armed: int

    @property
    def held(self) -> bool:
        """Whether the counter counts, and the second barrier holds by itself."""
        return self.remote_alone == 0 and self.armed > 0


async def control(arena: Arena) -> Control:
    """Take the barriers down, send marked requests, count. Leaves the catalog as it was."""
    await arena.whole()
    await arena.stage.prefer(mix.DIABETES, context_pb2.PATH_REMOTE)
    provider = arena.catalog / "providers" / "standin.yaml"
    policies = {path: path.read_text("utf-8") for path in (arena.catalog / "policies").iterdir()}
    kept = provider.read_text(encoding="utf-8")
    try:
        for path in policies:
            path.unlink()
        _write(arena.catalog / "policies" / "open.yaml", _OPEN)
        await asyncio.sleep(_RELOAD_S)
        alone = await _sent(arena, context_pb2.DATA_CLASS_RESTRICTED)
        _write(provider, kept.replace("max_data_class: internal", "max_data_class: confidential"))
        await _restart_remote(arena)
        armed = await _sent(arena, context_pb2.DATA_CLASS_CONFIDENTIAL)
    finally:
        (arena.catalog / "policies" / "open.yaml").unlink(missing_ok=True)
        for path, text in policies.items():
            _write(path, text)
        _write(provider, kept)
        await _restart_remote(arena)
        await asyncio.sleep(_RELOAD_S)
    return Control(_REQUESTS, alone, armed)


async def _sent(arena: Arena, data_class: int) -> int:
    await arena.forget()
    for number in range(_REQUESTS):
        try:
            await arena.stage.router.Infer(mix.marked(number, data_class), timeout=2)
        except grpc.RpcError:
            continue  # refused further on: what counts is what arrived
    return mix.restricted_at_vendor(await arena.vendor_log())


async def _restart_remote(arena: Arena) -> None:
    await arena.mesh.stop_one("remote")
    await arena.mesh.start_one("remote")
    await wait_for(arena.mesh.health_of("router"), timeout_s=30)
    await arena.stage.until_answered(mix.DIABETES, context_pb2.PATH_REMOTE)


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
