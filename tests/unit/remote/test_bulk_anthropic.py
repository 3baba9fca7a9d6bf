"""Bulk jobs before the stand-in's message batches, with a real state store.

What all vendors' jobs have in common is in test_bulk.py. Here: what differs where requests go with
the batch itself, and nothing but their names tells whose it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from services.chassis.errors import from_status
from services.cli.embedded.valkey import Valkey
from services.remote.bulk_anthropic import AnthropicBatches
from services.remote.wire import AnswerError
from tests.contract.provider_cases import TEXT_MODEL, text_of
from tests.local_path import running
from tests.support import MeshKeys
from tests.unit.remote.support import Remote, start_remote
from tests.unit.remote.test_bulk import HALF, HEAD, done, items, look, made, stub, submit
from twinpath.common.v1 import decision_pb2
from twinpath.inference.v1 import bulk_pb2, inference_pb2

PATH = "/v1/messages/batches"
RUNNING = bulk_pb2.BULK_STATE_RUNNING


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real state store; its URL."""
    server = Valkey("state", tmp_path_factory.mktemp("valkey"))
    with running(server):
        yield server.url


def provider(base_url: str, token_file: Path) -> str:
    """A vendor of messages whose batches cost half."""
    head = HEAD.format(base_url=base_url, token_file=token_file)
    model = TEXT_MODEL.format(price=HALF, max_tokens=64)
    return head.replace("openai-chat", "anthropic-messages") + model


@contextlib.asynccontextmanager
async def served(keys: MeshKeys, folder: Path, url: str) -> AsyncIterator[Remote]:
    """The service with that state store, and the stand-in."""
    async with start_remote(keys, folder, provider=provider, state_url=url) as remote:
        yield remote


async def rewrite(url: str, job: str, **fields: object) -> None:
    """Change what the state store knows of a job."""
    client = redis.asyncio.Redis.from_url(url)
    key = f"twinpath:bulk:{job}"
    await client.set(key, json.dumps(json.loads(await client.get(key)) | fields))
    await client.aclose()


def reasons(job: bulk_pb2.BulkJob) -> dict[str, str]:
    """Why each item has no answer; empty: it has one."""
    return {r.id: (e.reason if (e := from_status(r.status)) else "") for r in job.results}


async def test_items_are_answered_metered_and_cost_the_batchs_price(keys, tmp_path, valkey) -> None:
    """One request with all of them, each byte for byte as a single call would send it."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        begun = await submit(remote, job, items(keys, "one two", "three"))
        assert (begun.state, begun.items) == (RUNNING, 2)
        found = await done(remote, job)
        (single,) = await remote.infer(items(keys, "one two")[0])
        (batch,) = made(remote, PATH)
    assert [text_of(r.outputs) for r in found.results] == ["You said: one two", "You said: three"]
    start = batch.index(b'"params":') + 9
    body = batch[start : batch.index(b'},{"custom_id"')]
    first = found.results[0].metering
    assert first.wire_digest == hashlib.sha256(body).digest() == single.metering.wire_digest
    assert first.renderer_version == single.metering.renderer_version
    assert first.bytes_out == len(body)
    assert first.cost.basis == decision_pb2.COST_BASIS_REPORTED
    assert first.cost.nanos * 2 in (single.metering.cost.nanos, single.metering.cost.nanos + 1)


async def test_each_request_fails_alone(keys, tmp_path, valkey) -> None:
    """An error is that item's, by the table; a refusal is marked; a late one has expired."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await submit(remote, job, items(keys, "a", "b", "c", "d"))
        await remote.faults(
            *(
                {"fault": fault, "count": 1, "model": "standin-chat"}
                for fault in ("hang", "error;status=529", "refusal")
            )
        )
        found = await done(remote, job)
    assert reasons(found) == {
        "i-0": "", "i-1": "", "i-2": "VENDOR_OVERLOADED", "i-3": "VENDOR_BATCH_EXPIRED",
    }  # fmt: skip
    filtered = next(r for r in found.results if r.id == "i-1")
    assert filtered.finish_reason == inference_pb2.FINISH_REASON_CONTENT_FILTER


async def test_what_the_vendor_keeps_of_a_job_can_be_deleted(keys, tmp_path, valkey) -> None:
    """The batch, which holds requests and results; again changes nothing."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await submit(remote, job, items(keys, "one"))
        await done(remote, job)
        for _ in range(2):
            await stub(remote).ForgetBulk(bulk_pb2.ForgetBulkRequest(job_id=job), timeout=20)
        assert remote.standin.public._message_batches._batches == {}


async def test_a_job_can_be_ended(keys, tmp_path, valkey) -> None:
    """It runs until the vendor has let go of it; then each item says why it has no answer."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await submit(remote, job, items(keys, "one"))
        request = bulk_pb2.CancelBulkRequest(job_id=job)
        found = (await stub(remote).CancelBulk(request, timeout=20)).job
        while found.state == RUNNING:
            found = await look(remote, job)
    assert reasons(found) == {"i-0": "VENDOR_BATCH_CANCELLED"}


async def test_a_job_cut_off_is_found_by_its_names_once_it_has_ended(
    keys, tmp_path, valkey
) -> None:
    """Another one of the same size is not taken for it, and nothing is made twice."""
    job, other = secrets.token_hex(4), secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        batch = (await submit(remote, job, items(keys, "one"))).vendor_batch_id
        await submit(remote, other, items(keys, "two"))
        await rewrite(valkey, job, batch="")
        assert (await look(remote, job)).state == RUNNING  # it may be one that is worked on
        vendor = remote.standin.public._message_batches._batches
        for one in vendor.values():
            one.status, one.looks = "in_progress", 99
        await done(remote, other)
        assert (await look(remote, job)).state == RUNNING
        fake = type("Request", (), {"headers": {"anthropic-version": "2023-06-01"}})()
        remote.standin.public._message_batches._fault = lambda *_: None
        remote.standin.public._message_batches._work(fake, vendor[batch])
        found = await done(remote, job)
        assert text_of(found.results[0].outputs) == "You said: one"
        assert found.vendor_batch_id == batch
        assert len(made(remote, PATH)) == 2


async def test_a_job_whose_batch_was_never_made_has_failed(keys, tmp_path, valkey) -> None:
    """Nothing keeps its requests here; the caller may submit it anew under another id."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await submit(remote, job, items(keys, "one"))
        await rewrite(valkey, job, batch="")
        remote.standin.public._message_batches._batches.clear()
        found = await look(remote, job)
    assert (found.state, found.reason) == (bulk_pb2.BULK_STATE_FAILED, "BULK_INTERRUPTED")


async def test_a_batch_that_the_vendor_does_not_take_fails_the_job(keys, tmp_path, valkey) -> None:
    """With the table's reason, and with what has left."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await remote.faults({"fault": "error;status=401", "model": "batches"})
        found = await submit(remote, job, items(keys, "one"))
    assert (found.state, found.reason) == (bulk_pb2.BULK_STATE_FAILED, "VENDOR_TOKEN_REJECTED")
    assert reasons(found) == {"i-0": "VENDOR_TOKEN_REJECTED"}
    assert found.results[0].metering.bytes_out > 0


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b'{"custom_id": 1, "result": {"type": "expired"}}',
        b'{"custom_id": "a", "result": {"type": "lost"}}',
        b'{"custom_id": "a", "result": {"type": "errored", "error": {}}}',
        b'{"custom_id": "a", "result": {"type": "expired"}}\n' * 2,
    ],
)
def test_a_line_that_breaks_the_protocol_is_an_error(line: bytes) -> None:
    """It is not taken for an answer that is missing."""
    with pytest.raises(AnswerError):
        AnthropicBatches({}).answers(line)
