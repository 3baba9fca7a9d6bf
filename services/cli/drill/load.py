"""Open-loop load: requests start when the plan says, however slow the answers are.

A closed loop waits for an answer before it asks again, so a stalled system is asked less and looks
well ("coordinated omission", G. Tene). Here each request has an intended start, its latency counts
from that, and one that could not be sent counts as failed. Bounded in requests, in flight and in
time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from services.cli.drill.stats import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the caller of the system under load makes of one answer."""

    ok: bool
    code: str = "OK"
    attempts: int = 1
    label: str = ""
    path: str = ""


Ask = Callable[[int], Awaitable[Answer]]


def evenly(rate_per_s: float, seconds: float) -> list[float]:
    """Return intended starts at a fixed rate, in seconds from the start of the load."""
    return [number / rate_per_s for number in range(round(rate_per_s * seconds))]


def poisson(rate_per_s: float, seconds: float, chance: random.Random) -> list[float]:
    """Return intended starts as independent callers have them: the same rate, with bursts."""
    starts: list[float] = []
    at = chance.expovariate(rate_per_s)
    while at < seconds:
        starts.append(at)
        at += chance.expovariate(rate_per_s)
    return starts


async def offer(
    ask: Ask,
    starts: Sequence[float],
    *,
    grace_s: float = 5.0,
    max_in_flight: int = 5000,
    label_of: Callable[[int], str] = lambda _: "",
    on_start: Callable[[float], None] = lambda _: None,
) -> list[Sample]:
    """Send one request at each start, return one sample for each, in order.

    Args:
        ask: sends request number n with a deadline of its own and says what came. What it raises
            is a failed sample with the error's name as code.
        starts: intended starts in ascending order (seconds).
        grace_s: for the last ones to end; what is then still open is cancelled: `UNFINISHED`.
        max_in_flight: over this, a request is not sent and is a failed sample, `NOT_SENT`.
        label_of: the label of request n where there is no answer to take it from.
        on_start: told the event loop's time that is zero for the samples.
    """
    loop = asyncio.get_running_loop()
    zero = loop.time()
    on_start(zero)
    samples: dict[int, Sample] = {}
    open_tasks: dict[int, asyncio.Task[None]] = {}

    def failed(number: int, code: str) -> None:
        samples[number] = Sample(
            intended_s=starts[number],
            ended_s=max(loop.time() - zero, starts[number]),
            ok=False,
            code=code,
            attempts=0,
            label=label_of(number),
        )

    def ended(number: int, _: asyncio.Task[None]) -> None:
        open_tasks.pop(number, None)

    async def one(number: int) -> None:
        try:
            answer = await ask(number)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed request
            failed(number, type(error).__name__)
            return
        samples[number] = Sample(
            intended_s=starts[number],
            ended_s=loop.time() - zero,
            ok=answer.ok,
            code=answer.code,
            attempts=answer.attempts,
            label=answer.label or label_of(number),
            path=answer.path,
        )

    try:
        for number, start in enumerate(starts):
            wait = zero + start - loop.time()
            # late ones go out at once, but the answers that have come in are heard in between
            await asyncio.sleep(max(0.0, wait))
            if len(open_tasks) >= max_in_flight:
                failed(number, "NOT_SENT")
                continue
            task = asyncio.create_task(one(number))
            open_tasks[number] = task
            task.add_done_callback(partial(ended, number))
        if open_tasks:
            await asyncio.wait(open_tasks.values(), timeout=grace_s)
    finally:
        left = dict(open_tasks)
        for task in left.values():
            task.cancel()
        await asyncio.gather(*left.values(), return_exceptions=True)
    for number in range(len(starts)):
        if number not in samples:
            failed(number, "UNFINISHED")
    return [samples[number] for number in range(len(starts))]
