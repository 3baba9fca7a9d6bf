"""Bulk jobs before the stand-in's files and batches, with a real state store."""

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
from tests.contract.provider_cases import TEXT_MODEL, TOKEN_PRICE, text_of, texts
from tests.local_path import running
from tests.support import MeshKeys, refusal
from tests.unit.remote.support import VENDOR_TOKEN, Remote, make_item, start_remote
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import bulk_pb2, bulk_pb2_grpc, inference_pb2, inference_pb2_grpc

HEAD = """
name: standin
protocol: openai-chat
base_url: {base_url}/v1
token: {{file: {token_file}}}
region: eu
max_data_class: internal
models:
"""
HALF = TOKEN_PRICE.replace("output_tokens: 10}", "output_tokens: 10, bulk_share: 0.5}")


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real state store; its URL."""
    server = Valkey("state", tmp_path_factory.mktemp("valkey"))
    with running(server):
        yield server.url


def provider(base_url: str, token_file: Path) -> str:
    """A chat vendor whose batches cost half."""
    head = HEAD.format(base_url=base_url, token_file=token_file)
    return head + TEXT_MODEL.format(price=HALF, max_tokens=64)


@contextlib.asynccontextmanager
async def served(keys: MeshKeys, folder: Path, url: str | None) -> AsyncIterator[Remote]:
    """The service with that state store, and the stand-in."""
    async with start_remote(keys, folder, provider=provider, state_url=url) as remote:
        yield remote


def items(keys: MeshKeys, *questions: str, **fields: object) -> list[inference_pb2.InferItem]:
    """One item for each question."""
    return [
        make_item(
            keys, texts("text_input", [1, 1], question), model="writer",
            version="standin-chat-2026-01-01",
            context=context_pb2.ItemContext(id=f"i-{number}"), **fields,
        )
        for number, question in enumerate(questions)
    ]  # fmt: skip


def stub(remote: Remote) -> bulk_pb2_grpc.BulkStub:
    """The contract's client, as the router."""
    return bulk_pb2_grpc.BulkStub(remote.channel)


async def submit(
    remote: Remote, job: str, given: list[inference_pb2.InferItem]
) -> bulk_pb2.BulkJob:
    """Submit a job."""
    request = bulk_pb2.SubmitBulkRequest(job_id=job, items=given)
    return (await stub(remote).SubmitBulk(request, timeout=20)).job


async def look(remote: Remote, job: str) -> bulk_pb2.BulkJob:
    """Look at a job once."""
    return (await stub(remote).GetBulk(bulk_pb2.GetBulkRequest(job_id=job), timeout=20)).job


async def done(remote: Remote, job: str) -> bulk_pb2.BulkJob:
    """Look at a job until it is over."""
    for _ in range(10):
        found = await look(remote, job)
        if found.state != bulk_pb2.BULK_STATE_RUNNING:
            return found
    raise AssertionError("the job runs on and on")


def made(remote: Remote, path: str) -> list[bytes]:
    """The bodies of what was posted to a path."""
    entries = remote.standin.public.ledger.entries(100)
    return [e.body for e in entries if e.method == "POST" and e.path == path]


async def test_a_jobs_items_are_answered_metered_and_cost_the_batchs_price(
    keys, tmp_path, valkey
) -> None:
    """Results in the items' order; each body's digest is that of what left; half the price."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        given = items(keys, "one two", "three", "four five six")
        begun = await submit(remote, job, given)
        assert (begun.state, begun.items) == (bulk_pb2.BULK_STATE_RUNNING, 3)
        found = await done(remote, job)
        (single,) = await remote.infer(items(keys, "one two")[0])
        (upload,) = made(remote, "/v1/files")
    assert found.state == bulk_pb2.BULK_STATE_DONE
    assert [r.id for r in found.results] == ["i-0", "i-1", "i-2"]
    said = [text_of(r.outputs) for r in found.results]
    assert said == ["You said: one two", "You said: three", "You said: four five six"]
    first = found.results[0].metering
    line = next(row for row in upload.splitlines() if b"one two" in row)
    body = line[line.index(b'"body":') + 7 : -1]
    assert json.loads(body)["model"] == "standin-chat"
    assert first.wire_digest == hashlib.sha256(body).digest() == single.metering.wire_digest
    assert first.bytes_out == len(body)
    assert first.renderer_version == single.metering.renderer_version != ""
    assert first.output_tokens == single.metering.output_tokens > 0
    assert first.cost.basis == decision_pb2.COST_BASIS_REPORTED
    assert first.cost.nanos * 2 in (single.metering.cost.nanos, single.metering.cost.nanos + 1)
    assert VENDOR_TOKEN.encode() not in upload


async def test_what_the_door_refuses_never_leaves_and_the_others_go(keys, tmp_path, valkey) -> None:
    """Without a grant, with another input's, with what a detector finds."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        given = items(keys, "fine", "no grant", "swapped", "write to ann@clinic.example")
        given[1].ClearField("grant")
        given[2].grant.CopyFrom(make_item(keys, texts("text_input", [1, 1], "other")).grant)
        begun = await submit(remote, job, given)
        found = await done(remote, job)
        (upload,) = made(remote, "/v1/files")
        (again,) = await remote.infer(given[0])
    reasons = ["", "GRANT_MISSING", "GRANT_MISMATCH", "SENSITIVE_CONTENT"]
    assert [(e.reason if (e := from_status(r.status)) else "") for r in found.results] == reasons
    assert len(begun.results) == 3
    assert upload.count(b"custom_id") == 1
    assert b"ann@clinic.example" not in upload
    assert from_status(again.status).reason == "GRANT_USED"


async def test_the_same_id_again_sends_nothing(keys, tmp_path, valkey) -> None:
    """A caller that did not hear may ask again."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        first = await submit(remote, job, items(keys, "one"))
        second = await submit(remote, job, items(keys, "one"))
        assert second.vendor_batch_id == first.vendor_batch_id != ""
        assert len(made(remote, "/v1/files")) == len(made(remote, "/v1/batches")) == 1


async def test_another_replica_goes_on_with_a_job(keys, tmp_path, valkey) -> None:
    """What is known of it stands in the state store and at the vendor."""
    from services.standin.app import StandIn
    from services.standin.settings import Settings

    job = secrets.token_hex(4)
    async with StandIn(Settings(token=VENDOR_TOKEN)) as vendor:
        for number in (1, 2):
            folder = tmp_path / str(number)
            folder.mkdir()
            async with start_remote(
                keys, folder, vendor.url, provider=provider, state_url=valkey
            ) as remote:
                if number == 1:
                    await submit(remote, job, items(keys, "one"))
                else:
                    found = await done(remote, job)
    assert text_of(found.results[0].outputs) == "You said: one"


@pytest.mark.parametrize("reached", [True, False])
async def test_a_job_cut_off_before_its_batch_was_known_is_found_or_made_once(
    keys, tmp_path, valkey, reached
) -> None:
    """Whether the vendor has made it or not; it is looked for under the job's id first."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await submit(remote, job, items(keys, "one"))
        client = redis.asyncio.Redis.from_url(valkey)
        known = json.loads(await client.get(f"twinpath:bulk:{job}"))
        batch, known["batch"] = known["batch"], ""
        await client.set(f"twinpath:bulk:{job}", json.dumps(known))
        await client.aclose()
        if not reached:
            remote.standin.public._batches._batches.clear()
        found = await done(remote, job)
        assert text_of(found.results[0].outputs) == "You said: one"
        assert (found.vendor_batch_id == batch) == reached
        assert len(made(remote, "/v1/batches")) == (1 if reached else 2)
        assert len(made(remote, "/v1/files")) == 1


async def test_a_job_cut_off_before_its_file_has_failed(keys, tmp_path, valkey) -> None:
    """Nothing was asked; the caller may submit it anew under another id."""
    job = secrets.token_hex(4)
    document = {"id": job, "provider": "standin", "model": "writer", "version": "", "items": []}
    async with served(keys, tmp_path, valkey) as remote:
        client = redis.asyncio.Redis.from_url(valkey)
        await client.set(f"twinpath:bulk:{job}", json.dumps(document))
        await client.aclose()
        found = await look(remote, job)
        assert (found.state, found.reason) == (bulk_pb2.BULK_STATE_FAILED, "BULK_INTERRUPTED")
        assert remote.posts == 0


async def test_each_request_of_a_batch_fails_alone(keys, tmp_path, valkey) -> None:
    """An error of one line is that item's; a filtered answer is marked; a lost one has expired."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await submit(remote, job, items(keys, "a", "b", "c", "d"))
        await remote.faults(
            *(
                {"fault": fault, "count": 1, "model": "standin-chat"}
                for fault in ("hang", "error;status=503", "content_filter")
            )
        )
        found = await done(remote, job)
    by_id = {r.id: r for r in found.results}  # the stand-in begins with the last
    reasons = {
        name: (e.reason if (e := from_status(r.status)) else "") for name, r in by_id.items()
    }
    assert reasons == {
        "i-0": "", "i-1": "", "i-2": "VENDOR_UNAVAILABLE", "i-3": "VENDOR_BATCH_EXPIRED",
    }  # fmt: skip
    assert by_id["i-1"].finish_reason == inference_pb2.FINISH_REASON_CONTENT_FILTER
    assert not by_id["i-1"].outputs
    assert all(r.metering.sent for r in found.results)


async def test_embeddings_go_in_batches_too(keys, tmp_path, valkey) -> None:
    """Rows by index, as a single call gives them."""
    from tests.contract.provider_cases import EMBED_MODEL, PAIR

    def embeds(base_url: str, token_file: Path) -> str:
        head = HEAD.format(base_url=base_url, token_file=token_file)
        return head.replace("openai-chat", "openai-embeddings") + EMBED_MODEL.format(
            price=HALF, max_tokens=64
        )

    job = secrets.token_hex(4)
    async with start_remote(keys, tmp_path, provider=embeds, state_url=valkey) as remote:
        fields = {"model": "embedder", "version": "standin-embed-1"}
        given = [
            make_item(keys, PAIR, context=context_pb2.ItemContext(id=name), **fields)
            for name in ("a", "b")
        ]
        await submit(remote, job, given[:1])
        found = await done(remote, job)
        (single,) = await remote.infer(given[1])
    assert found.results[0].outputs == single.outputs
    assert len(single.outputs) == 1
    assert found.results[0].metering.cost.nanos * 2 >= single.metering.cost.nanos > 0


async def test_a_vendor_that_does_not_take_the_file_fails_the_job(keys, tmp_path, valkey) -> None:
    """With the table's reason; nothing was asked."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await remote.faults({"fault": "error;status=401", "model": "batches"})
        found = await submit(remote, job, items(keys, "one"))
        assert (found.state, found.reason) == (
            bulk_pb2.BULK_STATE_FAILED, "VENDOR_TOKEN_REJECTED",
        )  # fmt: skip
        assert made(remote, "/v1/batches") == []


async def test_a_job_can_be_ended(keys, tmp_path, valkey) -> None:
    """What was not answered by then says so."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await submit(remote, job, items(keys, "one"))
        request = bulk_pb2.CancelBulkRequest(job_id=job)
        found = (await stub(remote).CancelBulk(request, timeout=20)).job
    assert found.state == bulk_pb2.BULK_STATE_DONE
    assert from_status(found.results[0].status).reason == "VENDOR_BATCH_CANCELLED"


async def test_what_the_vendor_keeps_of_a_job_can_be_deleted(keys, tmp_path, valkey) -> None:
    """The files of requests and of answers, and the job; again changes nothing."""
    job = secrets.token_hex(4)
    async with served(keys, tmp_path, valkey) as remote:
        await submit(remote, job, items(keys, "one", "two"))
        await remote.faults({"fault": "error;status=500", "count": 1, "model": "standin-chat"})
        await done(remote, job)
        kept = remote.standin.public._batches._files
        assert len(kept) == 3  # requests, answers, errors
        await remote.faults({"fault": "error;status=503", "count": 1, "model": "batches"})
        request = bulk_pb2.ForgetBulkRequest(job_id=job)
        error = await refusal(stub(remote).ForgetBulk(request, timeout=20))
        assert error.reason == "VENDOR_UNAVAILABLE"
        for _ in range(2):
            await stub(remote).ForgetBulk(request, timeout=20)
        assert kept == {}
        error = await refusal(look(remote, job))
        assert error.reason == "BULK_UNKNOWN"


@pytest.mark.parametrize("batches", [True, False])
async def test_a_model_says_whether_it_takes_batches(keys, tmp_path, valkey, batches) -> None:
    """Those of a protocol that has them, and no others."""
    fields = {"provider": provider} if batches else {}
    async with start_remote(keys, tmp_path, state_url=valkey, **fields) as remote:
        stub = inference_pb2_grpc.InferenceStub(remote.channel)
        models = (await stub.Describe(inference_pb2.DescribeRequest(), timeout=10)).models
    assert {model.bulk for model in models} == {batches}


async def test_what_cannot_be_a_job_is_refused(keys, tmp_path, valkey) -> None:
    """An unknown id, two models, a vendor without batches, no state store."""
    async with served(keys, tmp_path, valkey) as remote:
        error = await refusal(look(remote, "unknown"))
        assert error.reason == "BULK_UNKNOWN"
        given = items(keys, "one", "two")
        given[1].version = "other"
        error = await refusal(submit(remote, "j", given))
        assert error.violations[0][0] == "items"
    folder = tmp_path / "oip"
    folder.mkdir()
    async with start_remote(keys, folder, state_url=valkey) as remote:
        error = await refusal(submit(remote, "j", [make_item(keys)]))
        assert error.reason == "BULK_UNSUPPORTED"
    folder = tmp_path / "stateless"
    folder.mkdir()
    async with served(keys, folder, None) as remote:
        error = await refusal(submit(remote, "j", items(keys, "one")))
        assert error.reason == "BULK_UNAVAILABLE"
        assert remote.posts == 0
