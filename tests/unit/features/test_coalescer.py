"""Coalescing: who shares a round trip, and that nobody suffers for another."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence

import pytest

from services.features.coalescer import Coalescer, Read, Row
from services.features.keys import hmget_fields

FIELDS = hmget_fields([b"f"])


def read(*keys: bytes) -> Read:
    """A read of these keys."""
    return Read(FIELDS, keys)


class Store:
    """Answers with the keys themselves, when it is told to."""

    def __init__(self) -> None:
        self.trips: list[list[bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def fetch(self, reads: Sequence[Read]) -> list[list[Row]]:
        """One round trip."""
        self.trips.append([key for one in reads for key in one.keys])
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [[[key] for key in one.keys] for one in reads]


async def test_reads_one_after_the_other_each_get_an_answer() -> None:
    """A caller that reads again at once does not wait for a flight that is over."""
    store = Store()
    coalescer = Coalescer(store.fetch, max_keys=10)
    for number in range(20):
        key = b"%d" % number
        async with asyncio.timeout(5):
            assert await coalescer.read([read(key)]) == [[[key]]]
    assert len(store.trips) == 20


async def test_reads_that_wait_share_the_next_round_trip() -> None:
    """While one is in flight the others gather, and then go together; each gets its own rows."""
    store = Store()
    store.gate.clear()
    coalescer = Coalescer(store.fetch, max_keys=100)
    first = asyncio.create_task(coalescer.read([read(b"a")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [
        asyncio.create_task(coalescer.read([read(b"%d" % n, b"x"), read(b"y")])) for n in range(5)
    ]
    await asyncio.sleep(0)
    store.gate.set()
    assert await first == [[[b"a"]]]
    for number, answer in enumerate(await asyncio.gather(*others)):
        assert answer == [[[b"%d" % number], [b"x"]], [[b"y"]]]
    assert [len(trip) for trip in store.trips] == [1, 15]


async def test_a_round_trip_has_a_largest_size() -> None:
    """More than fits goes with the one after; what is larger by itself goes alone."""
    store = Store()
    store.gate.clear()
    coalescer = Coalescer(store.fetch, max_keys=3)
    tasks = [
        asyncio.create_task(coalescer.read([read(*keys)]))
        for keys in ([b"a"], [b"b", b"c"], [b"d"], [b"e"], [b"f"] * 9)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(*tasks)
    assert [len(trip) for trip in store.trips] == [3, 2, 9]


async def test_who_gives_up_takes_nobody_along() -> None:
    """A caller's time-out neither stops the flight nor the callers that share it."""
    store = Store()
    store.gate.clear()
    coalescer = Coalescer(store.fetch, max_keys=10)
    impatient = asyncio.create_task(coalescer.read([read(b"a")]))
    patient = asyncio.create_task(coalescer.read([read(b"b")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    never_boarded = asyncio.create_task(coalescer.read([read(b"c")]))
    await asyncio.sleep(0)
    impatient.cancel()
    never_boarded.cancel()
    await asyncio.sleep(0)
    store.gate.set()
    assert await patient == [[[b"b"]]]
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert all(b"c" not in trip for trip in store.trips)


async def test_an_error_reaches_everyone_in_that_trip_and_no_later_one() -> None:
    """After a failed round trip the next ones work."""
    store = Store()
    store.error = ConnectionError("away")
    coalescer = Coalescer(store.fetch, max_keys=10)
    answers = await asyncio.gather(
        *(coalescer.read([read(b"a")]) for _ in range(3)), return_exceptions=True
    )
    assert [type(a) for a in answers] == [ConnectionError] * 3
    store.error = None
    assert await coalescer.read([read(b"b")]) == [[[b"b"]]]


async def test_a_round_trip_carries_nobodys_context() -> None:
    """What is set in the first caller's context is not seen in the shared round trip."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody")
    seen: list[str] = []

    async def fetch(reads: Sequence[Read]) -> list[list[Row]]:
        seen.append(variable.get())
        return [[[key] for key in one.keys] for one in reads]

    variable.set("somebody")
    await Coalescer(fetch, max_keys=10).read([read(b"a")])
    assert seen == ["nobody"]


async def test_closing_leaves_nobody_waiting() -> None:
    """At the end those who still wait get an error, and no task is left."""
    store = Store()
    store.gate.clear()
    coalescer = Coalescer(store.fetch, max_keys=1)
    waiting = [asyncio.create_task(coalescer.read([read(b"%d" % n)])) for n in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await coalescer.close()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(a, ConnectionError | asyncio.CancelledError) for a in answers)
