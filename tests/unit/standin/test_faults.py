"""The stand-in vendor fails when it is told to, as it is told to, and keeps count."""

from __future__ import annotations

import asyncio
import base64

import aiohttp
import pytest

from services.standin.faults import Fault, Rule, Schedule

INFER = "/v2/models/echo/infer"
REQUEST = {
    "inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}]
}


async def ask(vendor, fault: str | None = None):
    """One inference; returns status, headers and body."""
    headers = {} if fault is None else {"x-standin-fault": fault}
    async with vendor.post(INFER, json=REQUEST, headers=headers) as reply:
        return reply.status, reply.headers, await reply.read()


async def counters(admin):
    """What the stand-in counted."""
    async with admin.get("/admin/counters") as reply:
        return await reply.json()


async def eventually_unanswered(admin) -> None:
    """Wait until the stand-in has noticed that one request got no answer."""
    async with asyncio.timeout(5):
        while (await counters(admin))["by_status"] != {"499": 1}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("fault", "status", "retry_after"),
    [
        ("error", 503, None),
        ("error;status=500", 500, None),
        ("error;status=504;retry_after=2", 504, "2"),
        ("rate_limit;retry_after=3", 429, "3"),
        (
            "rate_limit;retry_after=Wed, 21 Oct 2026 07:28:00 GMT",
            429,
            "Wed, 21 Oct 2026 07:28:00 GMT",
        ),
        ("garbage", 200, None),
        ("error_inside", 200, None),
        ("truncated", 200, None),
        ("wrong_outputs", 200, None),
    ],
)
async def test_a_fault_by_header_has_its_status(vendor, admin, fault, status, retry_after) -> None:
    """One request asks for one fault, and it is counted by its kind."""
    got, headers, _ = await ask(vendor, fault)
    assert got == status
    assert headers.get("Retry-After") == retry_after
    assert (await counters(admin))["by_fault"] == {fault.partition(";")[0]: 1}


@pytest.mark.parametrize("fault", ["reset", "cut"])
async def test_a_connection_that_breaks_is_an_error_for_the_caller(vendor, admin, fault) -> None:
    """Nothing that looks like an answer arrives, and the log shows that none was given."""
    with pytest.raises(aiohttp.ClientError):
        await ask(vendor, fault)
    await eventually_unanswered(admin)


async def test_a_hanging_request_ends_when_its_caller_leaves(vendor, admin) -> None:
    """The caller's time-out is its own; the stand-in notices that it left."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await ask(vendor, "hang")
    await eventually_unanswered(admin)


async def test_a_dripping_answer_is_whole_in_the_end(vendor) -> None:
    """Slow is not broken."""
    _, _, slow = await ask(vendor, "drip;delay_ms=50")
    _, _, plain = await ask(vendor)
    assert slow == plain


async def test_drift_reports_another_version_under_the_same_name(vendor) -> None:
    """The answer is right; only the version differs."""
    _, _, body = await ask(vendor, "version_drift;version=2")
    assert b'"model_version":"2"' in body


async def test_an_unknown_fault_is_refused(vendor) -> None:
    """A test with a typing error fails at once."""
    for wrong in ("explode", "error;status=200", "error;when", "error;colour=red"):
        assert (await ask(vendor, wrong))[0] == 400


async def test_a_schedule_hits_as_many_requests_as_it_says(vendor, admin) -> None:
    """Rules are used up in order."""
    rules = [
        {"fault": "error;status=500", "count": 2},
        {"fault": {"kind": "rate_limit"}, "count": 1},
    ]
    async with admin.put("/admin/faults", json=rules) as reply:
        assert reply.status == 204
    assert [(await ask(vendor))[0] for _ in range(4)] == [500, 500, 429, 200]


async def test_a_schedule_with_a_mistake_changes_nothing(vendor, admin) -> None:
    """The whole list is checked before it is put in force."""
    async with admin.put("/admin/faults", json=[{"fault": "error"}, {"fault": "no"}]) as reply:
        assert reply.status == 400
    assert (await ask(vendor))[0] == 200


async def test_an_outage_refuses_connections_also_old_ones_and_ends(vendor, admin, standin) -> None:
    """The port is really closed, and the same port opens again."""
    assert (await ask(vendor))[0] == 200
    async with admin.put("/admin/faults", json=[{"fault": "outage"}]) as reply:
        assert reply.status == 204
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(vendor)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", standin.port)
    async with admin.delete("/admin/faults") as reply:
        assert reply.status == 204
    assert (await ask(vendor))[0] == 200


async def test_an_outage_ends_by_itself_when_its_time_is_over(vendor, admin) -> None:
    """A scheduled outage needs nobody to end it."""
    async with admin.put("/admin/faults", json=[{"fault": "outage", "for_s": 0.1}]):
        pass
    async with asyncio.timeout(5):
        while True:
            try:
                status, _, _ = await ask(vendor)
                break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)
    assert status == 200


async def test_the_log_holds_the_very_bytes_and_no_token(vendor, admin) -> None:
    """What was received can be compared; what was secret can't be read."""
    sent = b'{"inputs": [ {"name":"f","datatype":"FP32","shape":[1],"data":[1]} ] }'
    headers = {"Content-Type": "application/json", "traceparent": "00-" + "1" * 32}
    async with vendor.post(INFER, data=sent, headers=headers) as reply:
        assert reply.status == 200
    async with admin.get("/admin/log") as reply:
        text = await reply.text()
        (entry,) = (await reply.json())["entries"]
    assert base64.b64decode(entry["body_base64"]) == sent
    assert entry["headers"]["traceparent"] == headers["traceparent"]
    assert entry["headers"]["Authorization"] == "***"
    assert "stand-in-test-token" not in text


async def test_counters_and_log_can_be_emptied(vendor, admin) -> None:
    """A test starts from nothing."""
    await ask(vendor)
    assert (await counters(admin))["inferences"] == 1
    async with admin.delete("/admin/log") as reply:
        assert reply.status == 204
    assert (await counters(admin))["received"] == 0


async def test_the_bill_is_the_sum_of_the_prices_answered(vendor, admin) -> None:
    """Failed calls cost nothing, answered ones their price."""
    await ask(vendor)
    await ask(vendor)
    await ask(vendor, "error")
    assert (await counters(admin))["billed_usd"] == "0.0005"


def test_rules_are_in_force_in_their_time_only() -> None:
    """Start and length are counted from the posting, by the clock that was passed in."""
    now = 100.0
    schedule = Schedule(lambda: now)
    schedule.replace([Rule(fault=Fault(kind="error"), start_s=10, for_s=5)])
    seen = []
    for at in (100.0, 109.9, 110.0, 114.9, 115.0):
        now = at
        seen.append(schedule.draw("echo") is not None)
    assert seen == [False, False, True, True, False]


def test_probability_is_the_same_for_the_same_seed() -> None:
    """A flaky drill can be repeated exactly."""

    def draws(seed: int) -> list[bool]:
        schedule = Schedule(lambda: 0.0, seed)
        schedule.replace([Rule(fault=Fault(kind="error"), probability=0.5)])
        return [schedule.draw(None) is not None for _ in range(200)]

    assert draws(1) == draws(1) != draws(2)
    assert 60 < sum(draws(1)) < 140


def test_a_rule_for_one_model_spares_the_others() -> None:
    """Only the named model fails."""
    schedule = Schedule(lambda: 0.0)
    schedule.replace([Rule(fault=Fault(kind="error"), model="echo")])
    assert schedule.draw("other") is None
    assert schedule.draw("echo") is not None
