"""What every provider must do, each before the stand-in vendor: one suite for all.

The cases stand in provider_cases.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client import REGISTRY, generate_latest

from services.chassis import errors
from services.chassis.errors import from_status
from services.remote import failures, providers
from services.standin.ledger import CLIENT_GONE
from tests.contract.provider_cases import CASES, Case, text_of
from tests.support import MeshKeys
from tests.unit.remote.support import (
    LIMITED_TOKEN,
    VENDOR_TOKEN,
    Remote,
    make_item,
    start_remote,
)
from tests.unit.remote.test_failures import BY_STATUS
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import inference_pb2

every_case = pytest.mark.parametrize("case", CASES, ids=str)
over_http = pytest.mark.parametrize("case", [c for c in CASES if not c.grpc], ids=str)
saying = pytest.mark.parametrize("case", [c for c in CASES if c.says], ids=str)
streaming = pytest.mark.parametrize("case", [c for c in CASES if c.streams], ids=str)


@contextlib.asynccontextmanager
async def served(
    case: Case, keys: MeshKeys, folder: Path, **options: object
) -> AsyncIterator[Remote]:
    """The service with the case's provider file, and the stand-in."""
    if case.needs:
        pytest.importorskip(case.needs, reason="this provider's own package")
    standin = {"grpc_port": 0} if case.grpc else {}
    provider = case.provider(**options)
    async with start_remote(keys, folder, provider=provider, standin=standin) as remote:
        yield remote


def item_of(case: Case, keys: MeshKeys, **fields: object) -> inference_pb2.InferItem:
    """The case's item with a grant that fits."""
    return make_item(keys, case.given, model=case.model, version=case.version, **fields)


async def ask(case: Case, remote: Remote, **fields: object) -> inference_pb2.InferResult:
    """The result of the case's item."""
    (result,) = await remote.infer(item_of(case, remote.keys, **fields))
    return result


def reason_of(result: inference_pb2.InferResult) -> str:
    """Why an item failed; empty if it did not."""
    error = from_status(result.status)
    return error.reason if error else ""


def test_every_provider_has_a_case() -> None:
    """A file beside the others is a protocol; without a case here nothing would be known of it."""
    assert {case.protocol for case in CASES} == providers.PROTOCOLS


@every_case
async def test_it_answers_and_meters(case: Case, keys, tmp_path) -> None:
    """Right tensors; the record's facts fit what the vendor has received."""
    async with served(case, keys, tmp_path) as remote:
        result = await ask(case, remote)
        (entry,) = [e for e in remote.standin.public.ledger.entries(10) if e.method == "POST"]
    assert reason_of(result) == ""
    case.expected(result.outputs)
    metering = result.metering
    assert metering.sent
    assert metering.wire_digest == hashlib.sha256(entry.body).digest()
    assert metering.bytes_out == len(entry.body)
    assert metering.bytes_in > 0
    assert metering.renderer_version.startswith(case.renderer)
    assert metering.reported_version == case.version
    assert bool(metering.input_tokens) == case.counts


@every_case
async def test_the_cost_is_exact_to_the_vendors_report(case: Case, keys, tmp_path) -> None:
    """By the price of the day, cached tokens apart; without a report it is an estimate."""
    async with served(case, keys, tmp_path) as remote:
        metering = (await ask(case, remote)).metering
    assert metering.cost.currency_code == "USD"
    if not case.counts:
        assert metering.cost.basis == decision_pb2.COST_BASIS_ESTIMATED
        return
    cached = metering.input_tokens // 2 if "embed" not in case.name else 0
    fresh = metering.input_tokens - cached
    exact = (Decimal("2.5") * fresh + Decimal("0.25") * cached + 10 * metering.output_tokens) * 1000
    assert metering.cost.nanos == exact
    assert metering.cost.basis == decision_pb2.COST_BASIS_REPORTED


@pytest.mark.parametrize("known", [True, False], ids=["priced", "unpriced"])
@pytest.mark.parametrize("case", [c for c in CASES if c.writes_cache], ids=str)
async def test_what_is_written_to_a_cache_has_its_price_or_is_an_estimate(
    case: Case, keys, tmp_path, known
) -> None:
    """Vendors take more for it than for other tokens in: without that price nothing is exact."""
    own = ", usd_per_million_cache_write_tokens: 3" if known else ""
    price = "[{usd_per_million_input_tokens: 2, usd_per_million_output_tokens: 10" + own + "}]"
    async with served(case, keys, tmp_path, price=price) as remote:
        await remote.faults({"fault": "cache_write"})
        metering = (await ask(case, remote)).metering
    extra = 1 if known else 0
    exact = (2 * metering.input_tokens + extra + 10 * metering.output_tokens) * 1000
    assert metering.cost.nanos == exact
    assert metering.cost.basis == (
        decision_pb2.COST_BASIS_REPORTED if known else decision_pb2.COST_BASIS_ESTIMATED
    )


@over_http
async def test_the_table_of_statuses_holds(case: Case, keys, tmp_path) -> None:
    """Every row, for every provider, without a word of the vendor's own."""
    async with served(case, keys, tmp_path) as remote:
        for status, code, reason in BY_STATUS:
            fault = {"kind": "error", "status": status, "message": "patient 17"}
            await remote.faults({"fault": fault})
            result = await ask(case, remote)
            error = from_status(result.status)
            assert (error.code.name, error.reason) == (code, reason), status
            assert "patient" not in str(result)
            assert result.metering.sent
            assert result.metering.wire_digest
            assert not result.metering.HasField("cost")
        assert remote.posts == len(BY_STATUS)  # no retry of our own


BROKEN = {
    "reset": "VENDOR_CONNECTION_LOST",
    "cut": "VENDOR_CONNECTION_LOST",
    "truncated": "VENDOR_ANSWER_INVALID",
    "wrong_content_type": "VENDOR_ANSWER_INVALID",
    "garbage": "VENDOR_ANSWER_INVALID",
    "error_inside": "VENDOR_ERROR_INSIDE",
    "hang": "VENDOR_TIMEOUT",
    "drip": "VENDOR_TIMEOUT",
}


@pytest.mark.parametrize(
    ("case", "fault"),
    [(case, fault) for case in CASES for fault in BROKEN if fault in case.breaks],
    ids=str,
)
async def test_nothing_that_is_no_whole_answer_passes_for_one(
    case: Case, keys, tmp_path, fault
) -> None:
    """Each broken answer has its reason, and no outputs."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": fault})
        context = context_pb2.ItemContext(id="short", time_left_us=600_000)
        result = await ask(case, remote, context=context)
    assert reason_of(result) == BROKEN[fault]
    assert not result.outputs
    assert result.metering.sent
    # It may be billed all the same, and the vendor's own report did not come.
    assert result.metering.cost.nanos > 0
    assert result.metering.cost.basis == decision_pb2.COST_BASIS_ESTIMATED


@every_case
async def test_a_call_that_its_caller_gives_up_is_metered(case: Case, keys, tmp_path) -> None:
    """As a hedge that lost is: nobody hears the answer, and what was sent may be billed."""
    labels = {"provider": "standin", "model": case.model}
    name, by_basis = "twinpath_remote_cost_nanos_usd_total", {"basis": "estimated"}

    def spent() -> float:
        return REGISTRY.get_sample_value(name, labels | by_basis) or 0.0

    before = spent()
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": "hang"})
        request = inference_pb2.InferRequest(items=[item_of(case, keys)])
        call = remote.stub.Infer(request, timeout=30)
        async with asyncio.timeout(10):
            while not remote.posts:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        call.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while spent() == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert spent() > before


@every_case
async def test_a_silent_vendor_is_noticed_before_the_time_is_up(case: Case, keys, tmp_path) -> None:
    """No byte for so long is a reason of its own."""
    async with served(case, keys, tmp_path, extra="silence_timeout_s: 0.1") as remote:
        await remote.faults({"fault": "hang"})
        result = await ask(case, remote)
    assert reason_of(result) == "VENDOR_SILENT"
    assert result.metering.cost.basis == decision_pb2.COST_BASIS_ESTIMATED


@every_case
async def test_the_first_byte_may_take_longer_than_a_gap(case: Case, keys, tmp_path) -> None:
    """A model that thinks for long is not silent; past its own time-out it is."""
    extra = "silence_timeout_s: 0.2\nfirst_byte_timeout_s: {}"
    for limit, reason in ((20, ""), (0.1, "VENDOR_SILENT")):
        async with served(case, keys, tmp_path, extra=extra.format(limit)) as remote:
            await remote.faults({"fault": "slow;delay_ms=600"})
            assert reason_of(await ask(case, remote)) == reason


@streaming
async def test_after_the_first_byte_a_gap_counts(case: Case, keys, tmp_path) -> None:
    """However long the first one may take."""
    extra = "silence_timeout_s: 0.2\nfirst_byte_timeout_s: 60"
    async with served(case, keys, tmp_path, extra=extra) as remote:
        await remote.faults({"fault": "stall"})
        assert (await streamed(case, remote)).error.reason == "VENDOR_SILENT"


@every_case
async def test_tokens_are_shown_as_the_vendor_wants_them(case: Case, keys, tmp_path) -> None:
    """A wrong one is rejected by the vendor, one without the right is told apart."""
    async with served(case, keys, tmp_path) as remote:
        for token, reason in (
            ("stale", "VENDOR_TOKEN_REJECTED"),
            (LIMITED_TOKEN, "VENDOR_FORBIDDEN"),
            (VENDOR_TOKEN, ""),
        ):
            (tmp_path / "vendor.token").write_text(case.secret.format(token=token))
            async with asyncio.timeout(15):
                while reason_of(await ask(case, remote)) != reason:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)


@every_case
async def test_another_version_under_the_same_name_is_an_event(
    case: Case, keys, tmp_path, caplog
) -> None:
    """The record gets the version that answered; the log says that it is another one."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": "version_drift;version=other-7"})
        result = await ask(case, remote)
    assert result.metering.reported_version == "other-7"
    assert "another version under the same name" in caplog.text


@every_case
async def test_after_not_before_nothing_is_sent(case: Case, keys, tmp_path) -> None:
    """Retry-After, and for vendors with such headers, "nothing remains until"."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": "rate_limit;retry_after=300", "count": 1})
        assert reason_of(await ask(case, remote)) == "VENDOR_RATE_LIMITED"
        result = await ask(case, remote)
        error = from_status(result.status)
        assert error.reason == "VENDOR_RATE_LIMITED"
        assert 290 < error.retry_after <= 300
        assert not result.metering.sent
        assert remote.posts == 1


@pytest.mark.parametrize("case", [c for c in CASES if c.counts], ids=str)
async def test_headers_that_allow_no_more_are_kept_to(case: Case, keys, tmp_path) -> None:
    """The answer counts; the next request waits for the reset."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": "last_one;retry_after=6m0s", "count": 1})
        assert reason_of(await ask(case, remote)) == ""
        error = from_status((await ask(case, remote)).status)
        assert error.reason == "VENDOR_RATE_LIMITED"
        assert 350 < error.retry_after <= 360
        assert remote.posts == 1


@saying
async def test_a_refusal_by_content_policy_is_marked_and_has_no_outputs(
    case: Case, keys, tmp_path
) -> None:
    """In each form that the vendor gives it; nothing of a filtered answer is passed on."""
    async with served(case, keys, tmp_path) as remote:
        for fault in ("content_filter", "refusal", case.refusal):
            if not fault:
                continue
            await remote.faults({"fault": fault})
            result = await ask(case, remote)
            assert reason_of(result) == ""
            assert result.finish_reason == inference_pb2.FINISH_REASON_CONTENT_FILTER
            assert not result.outputs


@pytest.mark.parametrize("case", [c for c in CASES if c.quota], ids=str)
async def test_a_spent_account_is_no_rate_limit(case: Case, keys, tmp_path) -> None:
    """Waiting won't help, so it is FAILED_PRECONDITION."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": case.quota})
        assert reason_of(await ask(case, remote)) == failures.QUOTA_SPENT.reason


@saying
async def test_an_answer_that_the_limit_cut_is_marked(case: Case, keys, tmp_path) -> None:
    """A text comes with its mark; half a JSON object is an error."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": "length"})
        result = await ask(case, remote)
    if case.model == "writer":
        assert result.finish_reason == inference_pb2.FINISH_REASON_LENGTH
        assert text_of(result.outputs) == "You said:"
    else:
        assert reason_of(result) == "VENDOR_ANSWER_CUT"
        assert not result.outputs


@dataclass
class Streamed:
    """What came of a stream: the chunks' texts, its final or its failed message, its error."""

    found: list[str] = field(default_factory=list)
    final: inference_pb2.InferResult | None = None
    failed: inference_pb2.InferResult | None = None
    error: errors.ServiceError | None = None


async def streamed(case: Case, remote: Remote) -> Streamed:
    """Ask for the case's item in chunks."""
    request = inference_pb2.InferStreamRequest(item=item_of(case, remote.keys))
    came = Streamed()
    try:
        async for message in remote.stub.InferStream(request, timeout=10):
            assert came.final is None
            assert came.failed is None
            match message.WhichOneof("message"):
                case "final":
                    came.final = message.final
                case "failed":
                    came.failed = message.failed
                case _:
                    came.found.append(text_of(message.chunk.outputs))
    except grpc.aio.AioRpcError as error:
        came.error = errors.from_rpc_error(error)
    return came


async def chunks_of(
    case: Case, remote: Remote
) -> tuple[list[str], inference_pb2.InferResult | None, errors.ServiceError | None]:
    """The texts of a stream's chunks, its final message, its error."""
    came = await streamed(case, remote)
    return came.found, came.final, came.error


@streaming
async def test_a_stream_brings_the_answer_in_chunks_and_ends_once(
    case: Case, keys, tmp_path
) -> None:
    """Together they are the answer; the final message has metering and cost, and no outputs."""
    async with served(case, keys, tmp_path) as remote:
        whole = await ask(case, remote)
        found, final, error = await chunks_of(case, remote)
    assert error is None
    assert len(found) > 3
    assert "".join(found) == text_of(whole.outputs)
    assert final.finish_reason == inference_pb2.FINISH_REASON_STOP
    assert not final.outputs
    assert final.metering.first_chunk_us > 0
    assert final.metering.reported_version == case.version
    assert final.metering.cost == whole.metering.cost
    assert final.metering.output_tokens == whole.metering.output_tokens
    assert final.metering.wire_digest not in (b"", whole.metering.wire_digest)


@streaming
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("cut", "VENDOR_CONNECTION_LOST"),
        ("no_end", "VENDOR_STREAM_CUT"),
        ("error_inside", "VENDOR_ERROR_INSIDE"),
        ("garbage", "VENDOR_ANSWER_INVALID"),
        ("stall", "VENDOR_SILENT"),
    ],
)
async def test_a_stream_that_breaks_is_an_error_and_has_no_final_message(
    case: Case, keys, tmp_path, fault, reason
) -> None:
    """Also one that ends as if it were whole, before its protocol's end."""
    async with served(case, keys, tmp_path, extra="silence_timeout_s: 0.5") as remote:
        await remote.faults({"fault": fault})
        came = await streamed(case, remote)
    assert came.final is None
    assert came.error.reason == reason
    # What it took is said all the same, and is an estimate: the vendor's own report never came.
    metering = came.failed.metering
    assert from_status(came.failed.status).reason == reason
    assert metering.sent
    assert metering.wire_digest
    assert metering.bytes_out > 0
    assert bool(metering.first_chunk_us) == bool(came.found)
    assert metering.cost.nanos > 0
    assert metering.cost.basis == decision_pb2.COST_BASIS_ESTIMATED


@streaming
async def test_an_error_before_a_stream_is_the_tables_own(case: Case, keys, tmp_path) -> None:
    """A status other than 200, and no chunk."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": "error;status=529"})
        found, final, error = await chunks_of(case, remote)
    assert (found, final, error.reason) == ([], None, "VENDOR_OVERLOADED")


@streaming
@pytest.mark.parametrize(
    ("fault", "finish"),
    [
        ("content_filter", inference_pb2.FINISH_REASON_CONTENT_FILTER),
        ("length", inference_pb2.FINISH_REASON_LENGTH),
    ],
)
async def test_a_streams_end_says_why_it_ended(case: Case, keys, tmp_path, fault, finish) -> None:
    """The chunks were provisional; the final message tells what became of them."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": fault})
        _, final, _ = await chunks_of(case, remote)
    assert final.finish_reason == finish


@streaming
async def test_a_caller_that_leaves_closes_the_vendors_connection(
    case: Case, keys, tmp_path
) -> None:
    """After the first chunk the call is cancelled; the vendor sees that nobody listens."""
    async with served(case, keys, tmp_path) as remote:
        await remote.faults({"fault": "stall;delay_ms=60000"})
        request = inference_pb2.InferStreamRequest(item=item_of(case, keys))
        call = remote.stub.InferStream(request, timeout=30)
        await call.read()
        call.cancel()
        ledger = remote.standin.public.ledger
        async with asyncio.timeout(10):
            while not ledger.by_status[CLIENT_GONE]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@every_case
async def test_our_token_is_in_no_log_no_answer_and_no_metric(
    case: Case, keys, tmp_path, caplog
) -> None:
    """Planted, and searched for in all that comes out, on good ways and bad ones."""
    caplog.set_level("DEBUG")
    async with served(case, keys, tmp_path) as remote:
        results = [await ask(case, remote)]
        for fault in ("error;status=401", "reset", "garbage", "error_inside"):
            await remote.faults({"fault": fault})
            results.append(await ask(case, remote))
        entries = [e for e in remote.standin.public.ledger.entries(50) if e.method == "POST"]
    assert not any(VENDOR_TOKEN.encode() in entry.body for entry in entries)
    for place in (str(results), caplog.text, generate_latest(REGISTRY).decode()):
        assert VENDOR_TOKEN not in place
