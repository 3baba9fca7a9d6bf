"""Marked restricted values down every road to a vendor: it sees none; with the policy off, all.

Real processes: router, remote, audit, state store, stand-in vendor. The local path is a fake, so
that it can be slow or fail when a road needs it. Every request carries three marked values: one in
its free text, one as its entity's key (and in the text again), one in a field that no input lists.
What the vendor received is searched for the mark, bodies and headers, byte by byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest

from services.chassis.errors import UnavailableError, from_rpc_error, from_status
from tests.integration.canary_mesh import (
    INTERNAL,
    LOCAL,
    MARK,
    PER_ROAD,
    REMOTE,
    RESTRICTED,
    World,
    mesh,
)
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.router.v1 import jobs_pb2, router_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

Kind = decision_pb2.AttemptKind


# ---- the roads ---------------------------------------------------------------------------------


async def straight(world: World) -> None:
    """To the vendor, by the caller's wish."""
    await world.infer(world.requests(PER_ROAD, only_path=REMOTE))


async def fallback(world: World) -> None:
    """The local model fails."""
    world.local.faults["note"] = UnavailableError("AWAY", "away")
    await world.infer(world.requests(PER_ROAD))


async def hedge(world: World) -> None:
    """The local model answers quickly, and then no more."""
    await world.infer(world.requests(PER_ROAD), at_once=4)
    world.local.faults["note"] = 0.4
    await world.infer(world.requests(PER_ROAD), at_once=16)


async def retry(world: World) -> None:
    """The vendor fails now and then, and is asked again."""
    for _ in range(4):
        await world.faults({"fault": "error;status=500", "count": 1})
        await world.infer(world.requests(PER_ROAD // 4, only_path=REMOTE), at_once=2)


async def batch(world: World) -> None:
    """Many in one call."""
    asked = world.requests(PER_ROAD, only_path=REMOTE)
    items = [router_pb2.BatchItem(id=str(number), request=one) for number, one in asked]
    reply = await world.router.BatchInfer(router_pb2.BatchInferRequest(items=items), timeout=60)
    for result in reply.results:
        error = from_status(result.status)
        if error is None:
            world.note(int(result.id), result.response)
        else:
            world.reasons[error.reason] += 1


async def stream(world: World) -> None:
    """In chunks; and after a local stream that failed."""
    for only_path in (REMOTE, context_pb2.PATH_UNSPECIFIED):
        world.local.faults["note"] = UnavailableError("AWAY", "away")
        for number, request in world.requests(PER_ROAD // 2, "chunks", only_path=only_path):
            chunks = []
            try:
                async for message in world.router.InferStream(
                    router_pb2.InferStreamRequest(request=request), timeout=10
                ):
                    if message.HasField("final"):
                        world.note(number, message.final)
                    else:
                        chunks += [tensors.decode_bytes(t.raw) for t in message.chunk.outputs]
            except grpc.aio.AioRpcError as error:
                world.reasons[from_rpc_error(error).reason] += 1
            else:
                given = b"".join(part for parts in chunks for part in parts)
                assert given.decode() == world.answers[number]


async def cache(world: World) -> None:
    """The same questions twice, and once more under the same keys: the log's answer."""
    asked = world.requests(PER_ROAD, only_path=REMOTE)
    await world.infer(asked)
    for _ in range(10):  # on a busy machine the store may take too long, which is a miss
        await world.infer(asked, at_once=2)
        if world.cached or not world.answers:
            break
        await asyncio.sleep(1)
    for number, request in asked:
        request.idempotency_key = f"key-{number}"
    await world.infer(asked)
    await world.infer(asked)


async def replay(world: World) -> None:
    """Decided here, and asked again there; and decided there, and asked again."""
    decisions = await world.infer(world.requests(PER_ROAD, only_path=LOCAL))
    decisions += await world.infer(world.requests(PER_ROAD, only_path=REMOTE))
    for decision in decisions:
        asked = router_pb2.ReplayRequest(decision_id=decision, path=router_pb2.REPLAY_PATH_REMOTE)
        try:
            found = await world.auditor.Replay(asked, timeout=10)
        except grpc.aio.AioRpcError as error:
            world.reasons[from_rpc_error(error).reason] += 1
        else:
            world.kinds.update(attempt.kind for attempt in found.attempts)


async def arm(world: World) -> None:
    """A release prefers the vendor for half of the entities; the model here fails for the others."""
    await world.infer(world.requests(PER_ROAD // 2, "released"))
    world.local.faults["note"] = UnavailableError("AWAY", "away")
    await world.infer(world.requests(PER_ROAD // 2, "released"))


async def bulk(world: World) -> None:
    """Many in one job, at the vendor's batch price."""
    request = jobs_pb2.SubmitJobRequest(task="whole")
    for number, one in world.requests(PER_ROAD):
        request.items.add(
            id=str(number), entity=one.entity, fields=one.fields, data_class=one.data_class
        )
    job = (await world.jobs.SubmitJob(request, timeout=30)).job
    while not job.end_time_unix_us:
        await asyncio.sleep(0.1)
        job = (await world.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job.id), timeout=10)).job
    asked = jobs_pb2.ListJobResultsRequest(job_id=job.id)
    async for reply in world.jobs.ListJobResults(asked, timeout=30):
        error = from_status(reply.result.status)
        if error is None:
            world.note(int(reply.result.id), reply.result.response)
        else:
            world.reasons[error.reason] += 1


Road = Callable[[World], Awaitable[None]]
ROADS: tuple[Road, ...] = (
    straight, fallback, hedge, retry, batch, stream, cache, replay, arm, bulk,
)  # fmt: skip


async def walk(world: World, data_class: int) -> dict[str, list[bytes]]:
    """Go every road with data of a class; return what the vendor received on each."""
    world.data_class = data_class
    received = {}
    for road in ROADS:
        await world.well()
        await world.forget()
        await road(world)
        world.local.faults.clear()
        await world.faults()
        received[road.__name__] = await world.received()
    return received


# ---- what must hold ----------------------------------------------------------------------------


async def test_no_marked_value_reaches_the_vendor_by_any_road(tmp_path: Path) -> None:
    """Redacted, pseudonymized or refused: more than a thousand values, and not one byte of a mark.

    Internal data does reach the vendor, without its marks, and callers get their values back;
    restricted data does not reach it at all.
    """
    async with mesh(tmp_path, policy=True) as world:
        received = await walk(world, INTERNAL)
        roads = set(world.kinds)
        answers = dict(world.answers)
        before = world.next_number
        restricted = await walk(world, RESTRICTED)
    assert 3 * (world.next_number - before) >= 1_000
    for road, bodies in received.items():
        assert bodies, (road, world.reasons)  # it was taken
        assert sum(body.count(MARK) for body in bodies) == 0, road
    assert {Kind.ATTEMPT_KIND_PRIMARY, Kind.ATTEMPT_KIND_RETRY, Kind.ATTEMPT_KIND_FALLBACK,
            Kind.ATTEMPT_KIND_HEDGE, Kind.ATTEMPT_KIND_CACHE, Kind.ATTEMPT_KIND_BULK} <= roads  # fmt: skip
    assert world.cached > 0
    for number, answer in answers.items():
        assert f"CANARY-{number:06}" in answer
        assert answer.count(f"CANARYKEY-{number:06}") == 2
    assert {name: len(bodies) for name, bodies in restricted.items()} == dict.fromkeys(received, 0)
    refused = world.reasons["POLICY_REFUSED"] + world.reasons["NO_CANDIDATE_ON_PATH"]
    assert refused > len(ROADS) * PER_ROAD // 2


@pytest.mark.parametrize("data_class", ["CONFIDENTIAL", "RESTRICTED"])
async def test_with_the_policy_off_the_vendor_sees_them(tmp_path: Path, data_class: str) -> None:
    """The control: on every road, and of each kind, the same search finds what is there.

    Without a policy in the router, the remote service alone still stops what is called restricted
    (tests/contract/test_providers_canary.py): for that class it is switched off there, too.
    """
    number = context_pb2.DataClass.Value(f"DATA_CLASS_{data_class}")
    async with mesh(tmp_path, policy=False, ceiling=number != RESTRICTED) as world:
        received = await walk(world, number)
    for road, bodies in received.items():
        for mark in (b"CANARY-", b"CANARYKEY-", b"CANARYFIELD-"):
            assert sum(body.count(mark) for body in bodies) > 0, road
    seen = sum(body.count(MARK) for bodies in received.values() for body in bodies)
    assert seen > 2 * len(ROADS) * PER_ROAD
