"""Equal calls that overlap are one call, and nobody's leaving hurts another."""

from __future__ import annotations

import asyncio
import gc

import pytest

from services.router.singleflight import SingleFlight


class Model:
    """Answers when told to, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        """Wait for the word, then answer with the call's number."""
        self.calls += 1
        number = self.calls
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return number


async def turn() -> None:
    """Let everything that can run, run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_overlapping_calls_of_one_key_are_one() -> None:
    """A hundred callers, one call, one of them made it."""
    flights: SingleFlight[str, int] = SingleFlight()
    model = Model()
    waiting = [asyncio.create_task(flights.run("k", model)) for _ in range(100)]
    await turn()
    model.go.set()
    answers = await asyncio.gather(*waiting)
    assert {answer for answer, _ in answers} == {1}
    assert sum(mine for _, mine in answers) == 1
    assert len(flights) == 0


async def test_different_keys_and_later_calls_are_separate() -> None:
    """Nothing is remembered: that is the cache's part."""
    flights: SingleFlight[str, int] = SingleFlight()
    model = Model()
    model.go.set()
    await asyncio.gather(flights.run("a", model), flights.run("b", model))
    await flights.run("a", model)
    assert model.calls == 3


async def test_the_first_caller_may_leave() -> None:
    """Its call goes on for the others."""
    flights: SingleFlight[str, int] = SingleFlight()
    model = Model()
    first = asyncio.create_task(flights.run("k", model))
    await turn()
    second = asyncio.create_task(flights.run("k", model))
    await turn()
    first.cancel()
    await turn()
    model.go.set()
    assert await second == (1, False)
    assert model.cancelled == 0


async def test_when_all_have_left_the_call_is_cancelled() -> None:
    """No model works for nobody, and who comes next gets a call of its own."""
    flights: SingleFlight[str, int] = SingleFlight()
    model = Model()
    waiting = [asyncio.create_task(flights.run("k", model)) for _ in range(3)]
    await turn()
    for task in waiting:
        task.cancel()
    late = asyncio.create_task(flights.run("k", model))
    await turn()
    await asyncio.gather(*waiting, return_exceptions=True)
    model.go.set()
    answer, _ = await late
    assert answer == model.calls
    assert model.cancelled == 1
    assert len(flights) == 0


async def test_an_error_reaches_all_and_is_forgotten() -> None:
    """All who waited get it; the next call is made anew."""
    flights: SingleFlight[str, int] = SingleFlight()
    model = Model()
    model.error = RuntimeError("down")
    waiting = [asyncio.create_task(flights.run("k", model)) for _ in range(3)]
    await turn()
    model.go.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(result) for result in results] == ["down"] * 3
    model.error = None
    assert await flights.run("k", model) == (2, True)


@pytest.mark.filterwarnings("error")
async def test_an_error_that_nobody_waits_for_is_not_shouted() -> None:
    """The last caller left in the same turn in which the call failed."""
    flights: SingleFlight[str, int] = SingleFlight()
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    model = Model()
    model.error = RuntimeError("down")
    caller = asyncio.create_task(flights.run("k", model))
    await turn()
    model.go.set()
    await asyncio.sleep(0)
    caller.cancel()
    await turn()
    await asyncio.gather(caller, return_exceptions=True)
    gc.collect()
    assert not heard
