"""Marked restricted values down every road that the remote service has: the vendor sees none.

The roads above it (retry, hedge, fallback, cache, replay) are the router's, and are walked in
tests/integration/test_canary.py; whatever they bring here passes this door. The positive control
sends the same values as internal data.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import grpc.aio
import pytest

from services.chassis.errors import from_rpc_error, from_status
from tests.contract.provider_cases import CASES, Case, texts
from tests.unit.remote.support import Remote, make_item, start_remote
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import inference_pb2

MARK = "canary-"
MANY = 250
CASE = next(case for case in CASES if case.name == "openai-chat text")
RESTRICTED = context_pb2.DATA_CLASS_RESTRICTED
Road = Callable[[Remote, list[inference_pb2.InferItem]], object]


def marked(remote: Remote, case: Case, number: int, data_class: int) -> inference_pb2.InferItem:
    """An item with a value of its own, under a grant of that class."""
    given = texts("text_input", [1, 1], f"{MARK}{number:06}-end")
    claims = {"data_class": data_class}
    return make_item(remote.keys, given, model=case.model, version=case.version, claims=claims)


async def one_by_one(remote: Remote, items: list[inference_pb2.InferItem]) -> list[str]:
    """Each in a call of its own, many calls at once."""
    found = await asyncio.gather(*(remote.infer(item) for item in items))
    return [_reason(result) for results in found for result in results]


async def in_one_batch(remote: Remote, items: list[inference_pb2.InferItem]) -> list[str]:
    """All in one call."""
    return [_reason(result) for result in await remote.infer(*items, timeout=60)]


async def in_streams(remote: Remote, items: list[inference_pb2.InferItem]) -> list[str]:
    """Each in a stream of its own, eight at once."""
    gate = asyncio.Semaphore(8)

    async def one(item: inference_pb2.InferItem) -> str:
        request = inference_pb2.InferStreamRequest(item=item)
        async with gate:
            try:
                async for _ in remote.stub.InferStream(request, timeout=60):
                    pass
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error).reason
        return ""

    return list(await asyncio.gather(*(one(item) for item in items)))


async def under_another_items_grant(
    remote: Remote, items: list[inference_pb2.InferItem]
) -> list[str]:
    """With a grant for internal data that was signed for another value."""
    for number, item in enumerate(items):
        other = marked(remote, CASE, 10_000_000 + number, context_pb2.DATA_CLASS_INTERNAL)
        item.grant.CopyFrom(other.grant)
    return await in_one_batch(remote, items)


async def while_the_vendor_fails(remote: Remote, items: list[inference_pb2.InferItem]) -> list[str]:
    """Errors are the moment in which retries come."""
    await remote.faults({"fault": "error;status=500"})
    try:
        return await in_one_batch(remote, items)
    finally:
        await remote.faults()


async def twice(remote: Remote, items: list[inference_pb2.InferItem]) -> list[str]:
    """The very same items again, as a replay would."""
    return await in_one_batch(remote, items) + await in_one_batch(remote, items)


ROADS: list[Road] = [
    one_by_one, in_one_batch, in_streams, under_another_items_grant, while_the_vendor_fails, twice,
]  # fmt: skip


@contextlib.asynccontextmanager
async def served(keys, tmp_path):
    """The service with one text model, and a stand-in that keeps all it gets."""
    standin = {"log_entries": 100_000}
    async with start_remote(
        keys, tmp_path, provider=CASE.provider(), standin=standin, default_deadline_s=60.0
    ) as remote:
        yield remote


def seen(remote: Remote) -> int:
    """How many bodies with a mark the vendor has received."""
    entries = remote.standin.public.ledger.entries(1_000_000)
    return sum(MARK.encode() in entry.body for entry in entries)


async def test_no_restricted_value_reaches_the_vendor_by_any_road(keys, tmp_path) -> None:
    """More than a thousand values; each refusal is the door's, and nothing is sent at all."""
    async with served(keys, tmp_path) as remote:
        sent = 0
        for road in ROADS:
            items = [marked(remote, CASE, sent + n, RESTRICTED) for n in range(MANY)]
            sent += MANY
            reasons = set(await road(remote, items))
            expected = (
                "GRANT_MISMATCH" if road is under_another_items_grant else "DATA_CLASS_TOO_HIGH"
            )
            assert reasons == {expected}, road
        assert sent >= 1_000
        assert seen(remote) == 0
        assert remote.posts == 0


@pytest.mark.parametrize("road", [one_by_one, in_one_batch, in_streams])
async def test_the_control_sees_every_value(keys, tmp_path, road) -> None:
    """As internal data the same values arrive: the search finds what is there."""
    async with served(keys, tmp_path) as remote:
        internal = context_pb2.DATA_CLASS_INTERNAL
        items = [marked(remote, CASE, n, internal) for n in range(40)]
        assert set(await road(remote, items)) == {""}
        assert seen(remote) == 40


def _reason(result: inference_pb2.InferResult) -> str:
    error = from_status(result.status)
    return error.reason if error else ""
