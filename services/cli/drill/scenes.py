"""The drills: what is broken, how, and what callers may notice of it at the most."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from services.cli.drill import mix
from services.cli.drill.arena import Arena
from services.cli.drill.faultproxy import Faults
from services.cli.drill.noisy import Noise
from services.cli.drill.targets import Targets
from twinpath.common.v1 import context_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE
Act = Callable[[Arena], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Drill:
    """One drill.

    Attributes:
        about: What happens, in a few words.
        prefer: The path whose candidate goes first, so that the fault meets the traffic.
        broken: The candidate whose breaker is watched; empty: none.
        begin: Breaks it.
        end: Mends it; returns when what was broken is there again.
        targets: What has to hold.
        question: What callers ask.
        counted: Labels of the requests that the targets are about.
        load: Share of the measured capacity to offer; none: the usual rate.
        surge: How many times that is offered while the fault lasts.
    """

    about: str
    prefer: int
    broken: str
    begin: Act
    end: Act
    targets: Targets
    question: Callable[[int], mix.Question] = mix.usual
    counted: tuple[str, ...] = (mix.PLAIN,)
    load: float | None = None
    surge: float = 1.0


def _network(faults: Faults) -> Act:
    async def act(arena: Arena) -> None:
        await arena.vendor_network.apply(faults)

    return act


def _vendor(*rules: Mapping[str, object]) -> Act:
    async def act(arena: Arena) -> None:
        await arena.stage.faults(*rules)

    return act


def _kill(name: str) -> Act:
    async def act(arena: Arena) -> None:
        arena.mesh.kill(name)

    return act


def _start(name: str) -> Act:
    async def act(arena: Arena) -> None:
        await arena.mesh.start_one(name)

    return act


def _signal(name: str, number: signal.Signals) -> Act:
    async def act(arena: Arena) -> None:
        arena.mesh.processes[name].signal(number)

    return act


async def _lose_the_store(arena: Arena) -> None:
    arena.mesh.kill("features-store")
    arena.store_lost = True


async def _nothing(_: Arena) -> None:
    """The load itself is the fault."""


_DEAD = Targets(success=0.99, after_opening=0.999, open_s=1.0, close_s=10.0)
_IMPAIRED = Targets(success=0.99)
_VENDOR, _TRITON = "diabetes_large", "diabetes_small"

_noise = Noise()

DRILLS: Mapping[str, Drill] = MappingProxyType(
    {
        "noisy": Drill(
            "a batch job asks two other models of the same Triton, as fast as it is answered",
            LOCAL,
            "",
            _noise.begin,
            _noise.end,
            Targets(success=0.99, p99_times=2.0),
            question=mix.interactive,
            counted=(mix.INTERACTIVE,),
        ),
        "outage": Drill(
            "the vendor's port is closed, open connections are reset",
            REMOTE,
            _VENDOR,
            _network(Faults(refuse=True)),
            _network(Faults()),
            _DEAD,
        ),
        "slow": Drill(
            "the way to the vendor takes 300 ms longer, each direction",
            REMOTE,
            _VENDOR,
            _network(Faults(latency_s=0.3, jitter_s=0.1)),
            _network(Faults()),
            _IMPAIRED,
        ),
        "flaky": Drill(
            "three in ten of the vendor's answers are connection resets",
            REMOTE,
            _VENDOR,
            _network(Faults(reset_share=0.3)),
            _network(Faults()),
            _IMPAIRED,
        ),
        "ratelimit": Drill(
            "the vendor answers 429, Retry-After 1 s",
            REMOTE,
            _VENDOR,
            _vendor({"fault": {"kind": "rate_limit", "retry_after": "1"}}),
            _vendor(),
            _IMPAIRED,
        ),
        "stall": Drill(
            "the vendor's connections stay open and carry no bytes",
            REMOTE,
            _VENDOR,
            _network(Faults(stall=True)),
            _network(Faults()),
            _IMPAIRED,
        ),
        "overload": Drill(
            "three times what a 20 ms model can do is asked of it",
            LOCAL,
            "",
            _nothing,
            _nothing,
            Targets(success=0.994, normal_s=10.0),
            question=mix.overloading,
            counted=(mix.INTERACTIVE,),
            load=0.8,
            surge=3 / 0.8,
        ),
        "triton-kill": Drill(
            "Triton is killed, and started again",
            LOCAL,
            _TRITON,
            _kill("triton"),
            _start("triton"),
            _DEAD,
        ),
        "triton-stop": Drill(
            "Triton is stopped (SIGSTOP): it takes connections and says nothing",
            LOCAL,
            _TRITON,
            _signal("triton", signal.SIGSTOP),
            _signal("triton", signal.SIGCONT),
            _DEAD,
        ),
        "audit-kill": Drill(
            "the audit service is killed; records wait in the outbox",
            LOCAL,
            "",
            _kill("audit"),
            _start("audit"),
            _IMPAIRED,
        ),
        "redis-kill": Drill(
            "the state store is killed",
            LOCAL,
            "",
            _kill("state"),
            _start("state"),
            _IMPAIRED,
        ),
        "redis-kill-features": Drill(
            "the feature store is killed, and comes back empty; the task decides on defaults",
            LOCAL,
            "",
            _lose_the_store,
            _start("features-store"),
            _IMPAIRED,
            question=mix.defaulted,
        ),
    }
)
