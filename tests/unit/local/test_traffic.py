"""Which versions take requests, and when a drain is over."""

from __future__ import annotations

import asyncio

from services.local.traffic import Traffic

ONE, TWO = ("m", "1"), ("m", "2")


def test_without_explicit_control_whatever_is_ready_is_asked() -> None:
    """And the newest version answers requests that name none."""
    traffic = Traffic()
    assert traffic.admitted("r", [ONE, TWO]) == {ONE, TWO}
    assert traffic.serving("m") == ""


def test_a_version_is_asked_only_where_it_is_warm() -> None:
    """On the replica that it was warmed up on, and anew after it was away there."""
    traffic = Traffic(explicit=True)
    assert not traffic.admitted("r", [ONE])
    traffic.warmed("r", ONE)
    assert traffic.admitted("r", [ONE, TWO]) == {ONE}
    assert not traffic.admitted("other", [ONE])
    assert not traffic.admitted("r", [])
    assert not traffic.admitted("r", [ONE])


async def test_a_drain_ends_with_the_last_request() -> None:
    """New ones are refused from its start, until it is ended."""
    traffic = Traffic(explicit=True)
    for _ in range(2):
        traffic.enter(ONE)
    draining = asyncio.create_task(traffic.drain(ONE, 60))
    await asyncio.sleep(0)
    assert not traffic.takes(ONE)
    assert traffic.takes(TWO)
    traffic.leave(ONE)
    await asyncio.sleep(0)
    assert not draining.done()
    traffic.leave(ONE)
    assert await draining == 0
    assert not traffic.takes(ONE)
    traffic.reopen(ONE)
    assert traffic.takes(ONE)


async def test_a_drain_that_takes_too_long_says_how_many_are_left() -> None:
    """It waits no longer than it was told."""
    traffic = Traffic(explicit=True)
    traffic.enter(ONE)
    assert await traffic.drain(ONE, 0) == 1
