"""The load keeps its pace whatever the system does, and every request is accounted for."""

from __future__ import annotations

import asyncio
import random

import pytest

from services.cli.drill.load import Answer, evenly, offer, poisson


async def test_the_pace_does_not_wait_for_answers() -> None:
    """With nobody answering, all requests are sent all the same."""
    sent: list[int] = []
    release = asyncio.Event()

    async def ask(number: int) -> Answer:
        sent.append(number)
        if len(sent) == 50:
            release.set()  # only a generator that doesn't wait gets here
        await release.wait()
        return Answer(ok=True)

    samples = await offer(ask, evenly(1000, 0.05))
    assert sent == list(range(50))
    assert all(sample.ok for sample in samples)


async def test_latency_counts_from_the_intended_start() -> None:
    """A stall of the whole loop is charged to all requests that it delayed: no omission."""
    loop = asyncio.get_running_loop()

    async def ask(number: int) -> Answer:
        if number == 0:
            until = loop.time() + 0.2
            while loop.time() < until:  # blocks the generator itself
                pass
        return Answer(ok=True)

    samples = await offer(ask, evenly(100, 0.1))
    for sample in samples:
        assert sample.latency_s >= 0.2 - sample.intended_s - 1e-3


async def test_each_start_is_one_sample_in_order() -> None:
    """Errors, refusals and answers: none is lost, each says what it was."""

    async def ask(number: int) -> Answer:
        if number % 3 == 0:
            raise ConnectionError
        if number % 3 == 1:
            return Answer(ok=False, code="RESOURCE_EXHAUSTED", label="batch")
        return Answer(ok=True, path="local", attempts=2)

    starts = evenly(1000, 0.03)
    samples = await offer(ask, starts, label_of=lambda n: f"n{n}")
    assert [s.intended_s for s in samples] == starts
    assert [s.code for s in samples[:3]] == ["ConnectionError", "RESOURCE_EXHAUSTED", "OK"]
    assert [s.label for s in samples[:3]] == ["n0", "batch", "n2"]
    assert [s.attempts for s in samples[:3]] == [0, 1, 2]


async def test_bounded_in_flight() -> None:
    """Over the bound, requests are counted as failed, not as never meant."""
    running = 0
    most = 0

    async def ask(_: int) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(3600)
        return Answer(ok=True)

    samples = await offer(ask, evenly(1000, 0.03), max_in_flight=10, grace_s=0.0)
    codes = [sample.code for sample in samples]
    assert most == 10
    assert (codes.count("UNFINISHED"), codes.count("NOT_SENT")) == (10, 20)


async def test_bounded_in_time_and_leaves_nothing() -> None:
    """What has not ended after the grace is cancelled, and no task is left."""
    before = asyncio.all_tasks()

    async def ask(_: int) -> Answer:
        await asyncio.sleep(3600)
        return Answer(ok=True)

    samples = await offer(ask, evenly(100, 0.05), grace_s=0.05)
    assert {sample.code for sample in samples} == {"UNFINISHED"}
    assert asyncio.all_tasks() == before


async def test_cancelling_the_load_cancels_its_requests() -> None:
    """An interrupted drill leaves nothing running."""
    before = asyncio.all_tasks()

    async def ask(_: int) -> Answer:
        await asyncio.sleep(3600)
        return Answer(ok=True)

    running = asyncio.create_task(offer(ask, evenly(100, 10)))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == before


async def test_zero_is_told_so_that_faults_can_be_placed() -> None:
    """The drill's schedule and the samples share one origin."""
    zeros: list[float] = []

    async def ask(_: int) -> Answer:
        return Answer(ok=True)

    earliest = asyncio.get_running_loop().time()
    await offer(ask, [0.0], on_start=zeros.append)
    assert len(zeros) == 1
    assert zeros[0] >= earliest


def test_even_starts_are_exact() -> None:
    """100/s for 60 s are 6000 requests, without the drift of adding up."""
    starts = evenly(100, 60)
    assert len(starts) == 6000
    assert starts[-1] == 59.99


def test_poisson_starts_have_the_rate_and_the_seed() -> None:
    """The same seed gives the same load; the rate is right; they ascend."""
    starts = poisson(100, 60, random.Random(5))
    assert starts == poisson(100, 60, random.Random(5))
    assert len(starts) == pytest.approx(6000, rel=0.05)
    assert starts == sorted(starts)
    assert starts[-1] < 60
