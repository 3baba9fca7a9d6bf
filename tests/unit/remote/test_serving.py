"""The remote service answers items over a real vendor's protocol, and meters every attempt."""

from __future__ import annotations

import asyncio
import hashlib
import struct

import pytest

from services.chassis import errors
from services.chassis.errors import from_status
from services.remote.http_vendor import usable_s
from tests.support import client, refusal
from tests.unit.remote.support import Remote, features, make_item, start_remote
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2


async def test_what_the_vendor_gets_are_the_bytes_that_were_digested(remote: Remote) -> None:
    """The body ends with the tensor's own bytes, and its digest stands in the metering."""
    tensor = features(1.5, float("nan"), 0.0)
    (result,) = await remote.infer(make_item(remote.keys, tensor))
    assert result.status.code == 0, result.status.message
    (entry,) = remote.standin.public.ledger.entries(10)
    assert entry.body.endswith(tensor.raw)
    assert result.metering.wire_digest == hashlib.sha256(entry.body).digest()
    assert result.metering.bytes_out == len(entry.body)
    assert result.metering.bytes_in > 0
    assert result.metering.renderer_version == "oip-http-binary/1"
    assert result.metering.reported_version == "1"
    assert result.metering.latency_us > 0
    assert result.metering.sent
    assert list(result.outputs) == [tensor]


async def test_the_cost_is_the_vendors_own_report(remote: Remote) -> None:
    """The header that the provider file names is believed to the last digit."""
    result = await remote.one()
    assert result.metering.cost == decision_pb2.Cost(
        currency_code="USD", nanos=250_000, basis=decision_pb2.COST_BASIS_REPORTED
    )


async def test_without_a_report_the_cost_is_the_catalogs_price_and_says_so(keys, tmp_path) -> None:
    """An estimate is marked as one."""
    async with start_remote(keys, tmp_path, extra="") as remote:
        result = await remote.one()
    assert result.metering.cost == decision_pb2.Cost(
        currency_code="USD", nanos=123_000, basis=decision_pb2.COST_BASIS_ESTIMATED
    )


@pytest.mark.parametrize("datatype", [k for k in tensors._CONTENTS if k != tensors.BYTES])
async def test_every_datatype_goes_and_comes_byte_for_byte(remote: Remote, datatype: int) -> None:
    """No value is changed on the way, in either direction."""
    name = f"t_{tensors.datatype_name(datatype).lower()}"
    width = tensors._DTYPES[datatype].itemsize
    raw = b"\x01" * (2 * width)
    tensor = tensor_pb2.Tensor(name=name, datatype=datatype, shape=[1, 2], raw=raw)
    (result,) = await remote.infer(make_item(remote.keys, tensor, model="echo_types"))
    assert result.status.code == 0, result.status.message
    assert list(result.outputs) == [tensor]


async def test_strings_go_as_they_are(remote: Remote) -> None:
    """BYTES need not be text."""
    raw = tensors.encode_bytes([b"\xff\x00", b""])
    tensor = tensor_pb2.Tensor(name="t_bytes", datatype=tensors.BYTES, shape=[1, 2], raw=raw)
    (result,) = await remote.infer(make_item(remote.keys, tensor, model="echo_types"))
    assert list(result.outputs) == [tensor]


async def test_a_vendor_without_the_binary_extension_gets_json(keys, tmp_path) -> None:
    """FP32 goes out as the same value in decimal, and comes back bit for bit."""
    extra = "encoding: json\ncost_header: x-standin-cost-usd"
    async with start_remote(keys, tmp_path, extra=extra) as remote:
        tensor = features(0.1, 1e-45, 3.4028235e38)
        (result,) = await remote.infer(make_item(keys, tensor))
        (entry,) = remote.standin.public.ledger.entries(10)
    assert list(result.outputs) == [tensor]
    assert result.metering.renderer_version == "oip-http-json/1"
    assert entry.headers["Content-Type"] == "application/json"


async def test_what_json_cannot_say_is_refused_before_anything_is_sent(keys, tmp_path) -> None:
    """NaN for a JSON-only vendor is INVALID_ARGUMENT with the place."""
    async with start_remote(keys, tmp_path, extra="encoding: json") as remote:
        (result,) = await remote.infer(make_item(keys, features(float("nan"))))
        error = from_status(result.status)
        assert error.reason == "TENSOR_NOT_RENDERABLE"
        assert error.violations[0][0] == "input.tensors[0].raw"
        assert not result.metering.sent
        assert remote.posts == 0


async def test_one_bad_item_fails_alone(remote: Remote) -> None:
    """Results stand in the order of the items, each with its own status."""
    good, bad = make_item(remote.keys), make_item(remote.keys, model="ghost")
    last = make_item(remote.keys, features(3.0))
    results = await remote.infer(good, bad, last)
    assert [r.id for r in results] == [i.context.id for i in (good, bad, last)]
    assert [r.status.code for r in results] == [0, 5, 0]
    assert from_status(results[1].status).reason == "MODEL_UNKNOWN"


async def test_items_of_one_call_run_at_the_same_time(remote: Remote) -> None:
    """Two items that hang both reach the vendor before either is answered."""
    await remote.faults({"fault": "hang;delay_ms=60000"})
    call = asyncio.create_task(remote.infer(make_item(remote.keys), make_item(remote.keys)))
    async with asyncio.timeout(5):
        while remote.posts < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize(
    ("tensor", "places"),
    [
        (tensor_pb2.Tensor(name="other", datatype=11, shape=[1, 1], raw=bytes(4)),
         ["input.tensors[0].name", "input.tensors"]),
        (tensor_pb2.Tensor(name="features", datatype=12, shape=[1, 1], raw=bytes(8)),
         ["input.tensors[0].datatype"]),
        (tensor_pb2.Tensor(name="features", datatype=11, shape=[1], raw=bytes(8)),
         ["input.tensors[0].shape", "input.tensors[0].raw"]),
    ],
)  # fmt: skip
async def test_wrong_tensors_are_named_all_at_once(remote: Remote, tensor, places) -> None:
    """INVALID_ARGUMENT with every place, and nothing is sent."""
    (result,) = await remote.infer(make_item(remote.keys, tensor))
    error = from_status(result.status)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.reason == "TENSOR_MISMATCH"
    assert [place for place, _ in error.violations] == places
    assert remote.posts == 0


async def test_tensors_that_are_not_what_was_digested_are_data_loss(remote: Remote) -> None:
    """One flipped bit is found, and nothing is sent."""
    item = make_item(remote.keys)
    item.input.tensors[0].raw = struct.pack("<2f", 1.5, 2.0)
    (result,) = await remote.infer(item)
    error = from_status(result.status)
    assert isinstance(error, errors.DataLossError)
    assert error.reason == "INPUT_DIGEST_MISMATCH"
    assert remote.posts == 0


async def test_typed_contents_are_normalized_and_must_fit_the_grant(remote: Remote) -> None:
    """Hand-written contents have the digest of their normalized form."""
    typed = tensor_pb2.Tensor(
        name="features", datatype=11, shape=[1, 2],
        contents=tensor_pb2.TensorContents(fp32_contents=[-0.0, 2.0]),
    )  # fmt: skip
    clean = tensors.normalize([typed])
    from twinpath.inference import digest

    item = make_item(
        remote.keys,
        input=tensor_pb2.ModelInput(tensors=[typed]),
        claims={"input_digest": digest.digest(clean)},
    )
    (result,) = await remote.infer(item)
    assert result.status.code == 0, result.status.message
    assert result.outputs[0].raw == struct.pack("<2f", 0.0, 2.0)


async def test_an_item_whose_time_is_up_is_not_worked_on(remote: Remote) -> None:
    """Time left narrows the call's deadline for one item; a microsecond is over before it starts."""
    context = context_pb2.ItemContext(id="late", time_left_us=1)
    (late, good) = await remote.infer(
        make_item(remote.keys, context=context), make_item(remote.keys)
    )
    assert from_status(late.status).code.name == "DEADLINE_EXCEEDED"
    assert not late.metering.HasField("cost")
    assert good.status.code == 0


async def test_a_slow_vendor_is_given_up_when_the_items_time_is_up(remote: Remote) -> None:
    """The caller learns that the vendor was too slow, with the metering of the attempt."""
    await remote.faults({"fault": "hang;delay_ms=60000"})
    context = context_pb2.ItemContext(id="short", time_left_us=300_000)
    result = await remote.one(context=context)
    error = from_status(result.status)
    assert error.reason == "VENDOR_TIMEOUT"
    assert result.metering.sent
    assert result.metering.wire_digest


def test_the_answer_to_a_slow_vendor_comes_before_the_callers_deadline() -> None:
    """A part of the caller's time is kept to tell what happened: 10 %, 25 ms at most."""
    assert usable_s(10.0) == 9.975
    assert usable_s(0.05) == pytest.approx(0.045)


async def test_unknown_providers_are_not_found(remote: Remote) -> None:
    """The name is in the metadata."""
    result = await remote.one(provider="ghost")
    error = from_status(result.status)
    assert error.reason == "PROVIDER_UNKNOWN"
    assert error.metadata == {"provider": "ghost"}


async def test_describe_tells_what_the_catalog_lists(remote: Remote) -> None:
    """Tensors, path, provider, region and state; unknown names are NOT_FOUND."""
    reply = await remote.stub.Describe(inference_pb2.DescribeRequest(model="echo"))
    (model,) = reply.models
    assert (model.name, model.version, model.provider, model.region) == (
        "echo", "1", "standin", "eu",
    )  # fmt: skip
    assert model.path == context_pb2.PATH_REMOTE
    assert model.state == inference_pb2.MODEL_STATE_READY
    assert model.inputs[0].shape == [-1, -1]
    everything = await remote.stub.Describe(inference_pb2.DescribeRequest())
    assert [m.name for m in everything.models] == ["echo", "echo_types"]
    error = await refusal(remote.stub.Describe(inference_pb2.DescribeRequest(model="ghost")))
    assert error.reason == "MODEL_UNKNOWN"


async def test_an_empty_version_is_the_one_that_serves_now(remote: Remote) -> None:
    """The result says which it was."""
    result = await remote.one(version="")
    assert result.metering.reported_version == "1"


async def test_a_model_that_does_not_stream_answers_in_one_chunk(remote: Remote) -> None:
    """Then exactly one final message, with the metering and no outputs; the grant is used up."""
    item = make_item(remote.keys)
    call = remote.stub.InferStream(inference_pb2.InferStreamRequest(item=item))
    chunk, final = [message async for message in call]
    assert list(chunk.chunk.outputs) == list(item.input.tensors)
    assert not final.final.outputs
    assert final.final.metering.first_chunk_us > 0
    assert final.final.metering.wire_digest
    (result,) = await remote.infer(item)
    assert from_status(result.status).reason == "GRANT_USED"


async def test_the_trace_goes_to_the_vendor_and_baggage_does_not(remote: Remote) -> None:
    """The vendor sees the item's trace id, and nothing else of the caller's."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    context = context_pb2.ItemContext(
        id="traced", trace=context_pb2.TraceContext(traceparent=trace)
    )
    request = inference_pb2.InferRequest(items=[make_item(remote.keys, context=context)])
    await remote.stub.Infer(request, metadata=(("baggage", "patient=17"),), timeout=5)
    (entry,) = remote.standin.public.ledger.entries(10)
    assert entry.headers["traceparent"].split("-")[1] == "a" * 32
    assert "patient" not in str(entry.headers)


async def test_another_version_under_the_same_name_is_reported(remote: Remote, caplog) -> None:
    """Alias drift is an event in the log, and the record gets the version that answered."""
    await remote.one()
    await remote.faults({"fault": "version_drift;version=7"})
    result = await remote.one()
    assert result.metering.reported_version == "7"
    assert "another version under the same name" in caplog.text


async def test_a_vendor_that_is_down_makes_the_service_not_serving_until_it_is_back(
    remote: Remote,
) -> None:
    """Health follows the vendor both ways, and Describe says why."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    health = health_pb2_grpc.HealthStub(remote.channel)

    async def wait_for(status: int) -> None:
        async with asyncio.timeout(10):
            while (await health.Check(health_pb2.HealthCheckRequest())).status != status:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    await wait_for(health_pb2.HealthCheckResponse.SERVING)
    await remote.faults({"fault": "outage"})
    await wait_for(health_pb2.HealthCheckResponse.NOT_SERVING)
    (model, _) = (await remote.stub.Describe(inference_pb2.DescribeRequest())).models
    assert model.state == inference_pb2.MODEL_STATE_UNAVAILABLE
    assert model.state_reason
    await remote.faults()
    await wait_for(health_pb2.HealthCheckResponse.SERVING)


async def test_only_the_router_may_ask(remote: Remote) -> None:
    """Another service's identity is refused, whatever its grant."""
    async with client(remote.address, remote.keys.token("service:features")) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = inference_pb2.InferRequest(items=[make_item(remote.keys)])
        error = await refusal(stub.Infer(request, timeout=5))
    assert isinstance(error, errors.PermissionDeniedError)
    assert remote.posts == 0
