"""Each process is killed in turn while calls run: the right status, then recovery, no answer lost.

The statuses are those that a caller may see; what is never seen is UNKNOWN, INTERNAL, or an answer
without its record.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from services.chassis.errors import from_rpc_error
from tests.integration.conftest import DIABETES, LOCAL, REMOTE, TUMOUR, MeshUnderTest, request
from tests.support import refusal
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.router.v1 import router_pb2

pytestmark = pytest.mark.integration

Code = grpc.StatusCode
OUTAGE_S = 2.0
RECORDS_S = 30.0  # for records that waited in the router's outbox
# While something is being killed a caller may see these, and no other ones.
HONEST = {Code.OK, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}


@dataclass
class Traffic:
    """What callers saw."""

    codes: Counter[Code] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    decisions: list[str] = field(default_factory=list)
    stop: bool = False


@contextlib.asynccontextmanager
async def traffic(mesh: MeshUnderTest, task: str = DIABETES) -> AsyncIterator[Traffic]:
    """Four callers that ask all the time."""
    seen = Traffic()

    async def caller(number: int) -> None:
        async with mesh.router() as router:
            while not seen.stop:
                try:
                    reply = await router.Infer(request(task, 1 + number), timeout=3)
                except grpc.aio.AioRpcError as error:
                    failure = from_rpc_error(error)
                    seen.codes[failure.code] += 1
                    seen.reasons[failure.reason] += 1
                    await asyncio.sleep(0.05)
                else:
                    seen.codes[Code.OK] += 1
                    seen.decisions.append(reply.decision_id)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(caller(number))
        try:
            yield seen
        finally:
            seen.stop = True


async def without_record(mesh: MeshUnderTest, decisions: list[str]) -> list[str]:
    """Return the decisions that have no OUTCOME in the log, once what waits had its time."""
    missing = list(decisions)
    end = asyncio.get_running_loop().time() + RECORDS_S
    async with mesh.stub("audit", "auditor") as audit:
        while True:
            missing = [one for one in missing if not await _has_outcome(audit, one)]
            if not missing or asyncio.get_running_loop().time() > end:
                return missing
            await asyncio.sleep(0.2)


async def _has_outcome(audit: Any, decision: str) -> bool:
    try:
        found = await audit.Get(audit_pb2.GetRequest(decision_id=decision), timeout=5)
    except grpc.aio.AioRpcError:
        return False
    kinds = {stored.record.kind for stored in found.records}
    return record_pb2.RECORD_KIND_OUTCOME in kinds


@dataclass(frozen=True)
class Outage:
    """What a killed process means for a question that needs it.

    Attributes:
        asked: The question.
        codes: What it may meet while the process is away.
        others: Whether everybody else goes on being answered.
        also: What callers may see beside HONEST.
    """

    asked: router_pb2.InferRequest
    codes: set[Code]
    others: bool
    also: frozenset[Code] = frozenset()


NO_PATH = {Code.UNAVAILABLE, Code.FAILED_PRECONDITION, Code.DEADLINE_EXCEEDED}
OUTAGES = {
    "router": Outage(request(), {Code.UNAVAILABLE}, others=False),
    "features": Outage(request(), {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}, others=False),
    # It comes back empty, and until it is filled again there are no features for anybody.
    "features-store": Outage(
        request(),
        {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED},
        others=False,
        also=frozenset({Code.FAILED_PRECONDITION}),
    ),
    "audit": Outage(request(TUMOUR), {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}, others=False),
    "local": Outage(request(TUMOUR), NO_PATH, others=True),
    "triton": Outage(request(TUMOUR), NO_PATH, others=True),
    "remote": Outage(request(only_path=REMOTE), NO_PATH, others=True),
    "standin": Outage(request(only_path=REMOTE), NO_PATH, others=True),
    "state": Outage(
        request(idempotency_key="while-away"), {Code.UNAVAILABLE, Code.OK}, others=True
    ),
}


@pytest.mark.parametrize("name", OUTAGES)
async def test_a_killed_process_gives_the_right_status_and_comes_back(
    mesh: MeshUnderTest, name: str
) -> None:
    """Honest statuses meanwhile, answers afterwards, and every answer has its record."""
    outage = OUTAGES[name]
    async with traffic(mesh) as seen:
        await asyncio.sleep(0.5)
        mesh.kill(name)
        await asyncio.sleep(OUTAGE_S / 2)
        async with mesh.router() as router:
            try:
                await router.Infer(outage.asked, timeout=3)
                code = Code.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
        await asyncio.sleep(OUTAGE_S / 2)
        meanwhile = Counter(seen.codes)
        await mesh.whole()
        before = len(seen.decisions)
        for _ in range(200):  # a caller's own channel may wait seconds before it connects again
            await asyncio.sleep(0.1)
            if len(seen.decisions) > before:
                break
        after = len(seen.decisions)
    assert code in outage.codes
    assert set(seen.codes) <= HONEST | outage.also, seen.reasons
    assert after > before, f"no answers after {name} came back: {seen.reasons}"
    if outage.others:
        assert set(meanwhile) == {Code.OK}, seen.reasons
    assert await without_record(mesh, seen.decisions) == []


async def test_a_service_says_not_serving_while_its_dependency_is_away(
    mesh: MeshUnderTest,
) -> None:
    """Health follows what a service needs, and comes back by itself."""
    for dependency, service in (
        ("triton", "local"),
        ("features-store", "features"),
        ("features", "router"),
    ):
        mesh.kill(dependency)
        assert await mesh.serving(service, want=False), f"{service} did not notice {dependency}"
        await mesh.whole()


async def test_with_the_local_path_away_the_restricted_task_is_refused_and_nothing_sent(
    mesh: MeshUnderTest,
) -> None:
    """Sensitive data fails closed: the vendor's own counters stand still."""
    before = await mesh.standin()
    mesh.kill("local")
    async with mesh.router() as router:
        for _ in range(20):
            error = await refusal(router.Infer(request(TUMOUR), timeout=3))
            assert error.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}
    assert (await mesh.standin())["body_bytes"] == before["body_bytes"]
    await mesh.start("local")
    assert (await mesh.answers(TUMOUR)).answered_by.path == LOCAL


async def test_an_orderly_stop_of_a_service_drops_no_call(mesh: MeshUnderTest) -> None:
    """A path that is stopped in an orderly way finishes its calls; others take over."""
    async with traffic(mesh) as seen:
        await asyncio.sleep(0.5)
        await mesh.stop("local")
        await mesh.start("local")
        await asyncio.sleep(0.5)
    assert set(seen.codes) == {Code.OK}, seen.reasons
