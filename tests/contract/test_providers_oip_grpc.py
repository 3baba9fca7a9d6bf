"""The Open Inference Protocol over gRPC, before the stand-in's gRPC side."""

from __future__ import annotations

import asyncio
import hashlib

import grpc
import pytest
from prometheus_client import REGISTRY, generate_latest

from services.chassis.errors import from_status
from services.remote.providers import oip_grpc
from tests.support import free_port
from tests.unit.remote.support import (
    VENDOR_TOKEN,
    features,
    make_item,
    provider_yaml,
    start_remote,
)
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2


def provider(base_url: str, token_file) -> str:
    """The echo models over gRPC."""
    text = provider_yaml(base_url, token_file, extra="connect_timeout_s: 0.5")
    return text.replace("protocol: oip-http", "protocol: oip-grpc")


def served(keys, tmp_path, **options):
    """The service and the stand-in with a gRPC side."""
    return start_remote(keys, tmp_path, provider=provider, standin={"grpc_port": 0}, **options)


async def test_what_arrives_are_the_bytes_that_were_digested(keys, tmp_path) -> None:
    """Raw contents, byte for byte both ways; the record's facts fit what arrived."""
    async with served(keys, tmp_path) as remote:
        tensor = features(1.5, float("nan"), 0.0)
        (result,) = await remote.infer(make_item(keys, tensor))
        assert result.status.code == 0, result.status
        (entry,) = remote.standin.public.ledger.entries(10)
    assert list(result.outputs) == [tensor]
    assert tensor.raw in entry.body
    assert result.metering.wire_digest == hashlib.sha256(entry.body).digest()
    assert result.metering.bytes_out == len(entry.body)
    assert result.metering.bytes_in > 0
    assert result.metering.renderer_version == "oip-grpc/1"
    assert result.metering.reported_version == "1"
    assert result.metering.cost.nanos == 123_000
    assert result.metering.cost.basis == decision_pb2.COST_BASIS_ESTIMATED


async def test_every_datatype_goes_and_comes_byte_for_byte(keys, tmp_path) -> None:
    """Also those that JSON has no form for."""
    async with served(keys, tmp_path) as remote:
        for datatype in tensors._CONTENTS:
            raw = (
                tensors.encode_bytes([b"\xff\x00", b""])
                if datatype == tensors.BYTES
                else b"\x01" * (2 * tensors._DTYPES[datatype].itemsize)
            )
            name = f"t_{tensors.datatype_name(datatype).lower()}"
            tensor = tensor_pb2.Tensor(name=name, datatype=datatype, shape=[1, 2], raw=raw)
            (result,) = await remote.infer(make_item(keys, tensor, model="echo_types"))
            assert result.status.code == 0, (name, result.status)
            assert list(result.outputs) == [tensor]


def test_the_table_covers_every_code() -> None:
    """All but OK."""
    assert set(oip_grpc._FAILURES) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


async def test_the_table_of_codes_holds(keys, tmp_path) -> None:
    """Every row, without a word of the vendor's own."""
    async with served(keys, tmp_path) as remote:
        for code, failure in oip_grpc._FAILURES.items():
            fault = {"kind": "error", "code": str(code.value[0]), "message": "patient 17"}
            await remote.faults({"fault": fault})
            result = await remote.one()
            error = from_status(result.status)
            assert (type(error), error.reason) == (failure.kind, failure.reason), code
            assert "patient" not in str(result)
            assert result.metering.sent
        assert remote.posts == len(oip_grpc._FAILURES)  # no retry of our own


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("hang", "VENDOR_TIMEOUT"),
        ("truncated", "VENDOR_ANSWER_INVALID"),
        ("wrong_outputs", "VENDOR_OUTPUT_MISMATCH"),
    ],
)
async def test_nothing_that_is_no_whole_answer_passes_for_one(
    keys, tmp_path, fault, reason
) -> None:
    """Each has its reason, and no outputs."""
    async with served(keys, tmp_path) as remote:
        await remote.faults({"fault": fault})
        context = context_pb2.ItemContext(id="short", time_left_us=500_000)
        result = await remote.one(context=context)
    assert from_status(result.status).reason == reason
    assert not result.outputs


async def test_where_nobody_listens_nothing_was_sent(keys, tmp_path) -> None:
    """A retry may know that nothing left."""
    async with served(keys, tmp_path, base_url=f"http://127.0.0.1:{free_port()}") as remote:
        result = await remote.one()
    assert from_status(result.status).reason == "VENDOR_UNAVAILABLE"
    assert not result.metering.sent
    assert not result.metering.wire_digest


async def test_a_rotated_token_is_used_and_none_is_in_any_output(keys, tmp_path, caplog) -> None:
    """The file is read again; results, log and metrics hold no token."""
    caplog.set_level("DEBUG")
    results = []
    async with served(keys, tmp_path) as remote:
        for token, reason in (("stale", "VENDOR_TOKEN_REJECTED"), (VENDOR_TOKEN, "OK")):
            (tmp_path / "vendor.token").write_text(token)
            async with asyncio.timeout(10):
                while True:
                    results.append(await remote.one())
                    error = from_status(results[-1].status)
                    if (error.reason if error else "OK") == reason:
                        break
                    await asyncio.sleep(0.1)
    for place in (str(results), caplog.text, generate_latest(REGISTRY).decode()):
        assert VENDOR_TOKEN not in place


async def test_the_trace_goes_to_the_vendor(keys, tmp_path) -> None:
    """As gRPC metadata."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    context = context_pb2.ItemContext(id="t", trace=context_pb2.TraceContext(traceparent=trace))
    async with served(keys, tmp_path) as remote:
        await remote.infer(make_item(keys, context=context))
        (entry,) = remote.standin.public.ledger.entries(10)
    assert entry.headers["traceparent"].split("-")[1] == "a" * 32
    assert VENDOR_TOKEN not in str(entry.headers)
