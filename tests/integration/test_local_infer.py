"""The local path over a real Triton: answers, refusals, metering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

from services.cli.embedded.triton import Triton
from services.local.wire import Reply, Wire
from tests.local_path import Door, Stub, ask, failure, features, item, local, triton
from tests.support import MeshKeys, free_port, refusal
from twinpath.common.v1 import decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton with all test models."""
    with triton(tmp_path_factory.mktemp("triton")) as running:
        yield running


@pytest.fixture
async def stub(server: Triton, keys: MeshKeys, door: Door) -> AsyncIterator[Stub]:
    """The local path over it."""
    options = {"models": server.options.models, "machine_usd_per_hour": 3.6, "machine_slots": 2}
    async with local(keys, server.url, **options, **door(server)) as found:
        yield found


async def test_outputs_are_what_the_model_returns(stub: Stub) -> None:
    """The echo's bytes, name, type and shape come back."""
    given = features([1.5, -2.0, float("nan")])
    [result] = await ask(stub, item("echo", given))
    assert result.status.code == 0
    assert result.id == "item-1"
    assert list(result.outputs) == list(given.tensors)


async def test_metering_says_what_it_took(stub: Stub) -> None:
    """Version, artifact digest, latency, bytes, compute time and cost are filled."""
    [result] = await ask(stub, item("batched", features([1, 2, 3], [4, 5, 6])))
    metering = result.metering
    assert metering.reported_version == "2"
    assert len(metering.artifact_digest) == 32
    assert metering.bytes_out > 24
    assert metering.bytes_in > 8
    assert metering.compute_us > 0
    assert metering.latency_us > 0
    assert metering.sent
    assert metering.cost.currency_code == "USD"
    assert metering.cost.nanos > 0
    assert metering.cost.basis == decision_pb2.COST_BASIS_MEASURED
    assert tensors.to_numpy(result.outputs[0]).tolist() == [[6], [15]]


async def test_without_a_price_there_is_no_cost(server: Triton, keys: MeshKeys) -> None:
    """What is not known is absent, not zero."""
    async with local(keys, server.url) as stub:
        [result] = await ask(stub, item("echo", features([1])))
    assert result.status.code == 0
    assert not result.metering.HasField("cost")
    assert result.metering.artifact_digest == b""


async def test_each_item_has_its_own_result(stub: Stub) -> None:
    """A bad item fails alone, and the order is kept."""
    results = await ask(
        stub,
        item("echo", features([1]), name="a"),
        item("no_such_model", features([2]), name="b"),
        item("faulty", features([1]), name="c"),
        item("echo", features([4]), name="d"),
    )
    assert [r.id for r in results] == ["a", "b", "c", "d"]
    assert [r.status.code for r in results] == [0, 5, 13, 0]
    assert tensors.to_numpy(results[3].outputs[0]).tolist() == [[4]]


async def test_a_named_version_answers(stub: Stub) -> None:
    """A version that is named is the one that is asked; without one, the newest."""
    [old] = await ask(stub, item("batched", features([1, 2, 3]), version="1"))
    [new] = await ask(stub, item("batched", features([1, 2, 3])))
    assert old.metering.reported_version == "1"
    assert new.metering.reported_version == "2"


@pytest.mark.parametrize(("model", "version"), [("nope", ""), ("echo", "9"), ("echo", "v1")])
async def test_unknown_models_and_versions_are_not_found(
    stub: Stub, model: str, version: str
) -> None:
    """The error names the model."""
    [result] = await ask(stub, item(model, features([1]), version=version))
    error = failure(result)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")
    assert error.metadata["model"] == model
    assert not result.metering.sent


async def test_all_violations_of_an_input_are_named(stub: Stub) -> None:
    """Name, type, shape and absence are reported together, each with its place."""
    wrong = [
        tensors.from_numpy("t_fp32", np.zeros((1, 1), dtype=np.float64)),
        tensors.from_numpy("t_int8", np.zeros((1, 1, 1), dtype=np.int8)),
        tensors.from_numpy("zzz", np.zeros((1, 1), dtype=np.int8)),
    ]
    [result] = await ask(stub, item("echo_types", tensor_pb2.ModelInput(tensors=wrong)))
    error = failure(result)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TENSOR_MISMATCH")
    fields = [field for field, _ in error.violations]
    assert fields[:3] == [
        "input.tensors[0].datatype",
        "input.tensors[1].shape",
        "input.tensors[2].name",
    ]
    assert len([f for f in fields if f == "input.tensors"]) == 12
    assert not result.metering.sent


@pytest.mark.parametrize("rows", [0, 9])
async def test_a_batch_must_fit_the_model(stub: Stub, rows: int) -> None:
    """More rows than the model takes, or none, are refused before Triton is asked."""
    given = tensors.from_numpy("features", np.zeros((rows, 3), dtype=np.float32))
    [result] = await ask(stub, item("batched", tensor_pb2.ModelInput(tensors=[given])))
    error = failure(result)
    assert error.reason == "TENSOR_MISMATCH"
    assert "1 to 8" in error.violations[0][1]


async def test_contents_that_do_not_fit_their_shape_are_refused(stub: Stub) -> None:
    """A length that is not the shape's is named, with a digest and without."""
    given = features([1, 2])
    given.tensors[0].raw = b"\0" * 5
    given.digest = b""
    [result] = await ask(stub, item("echo", given))
    assert failure(result).violations[0][0] == "input.tensors[0].raw"


async def test_a_digest_that_does_not_fit_is_data_loss(stub: Stub) -> None:
    """One flipped bit on the way is found, and Triton is not asked."""
    given = features([1, 2])
    given.tensors[0].raw = bytes([given.tensors[0].raw[0] ^ 1]) + given.tensors[0].raw[1:]
    [result] = await ask(stub, item("echo", given))
    error = failure(result)
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "INPUT_DIGEST_MISMATCH")
    assert not result.metering.sent


async def test_typed_contents_are_normalized(stub: Stub) -> None:
    """A caller that writes by hand may use typed contents, without a digest."""
    typed = tensor_pb2.Tensor(
        name="features",
        datatype=tensor_pb2.DATATYPE_FP32,
        shape=[1, 2],
        contents={"fp32_contents": [-0.0, 2.5]},
    )
    [result] = await ask(stub, item("echo", tensor_pb2.ModelInput(tensors=[typed])))
    assert list(result.outputs) == list(features([0.0, 2.5]).tensors)


async def test_an_item_whose_time_is_up_is_not_sent(stub: Stub) -> None:
    """A microsecond is over before anything is done."""
    [result] = await ask(stub, item("echo", features([1]), time_left_s=1e-6))
    assert failure(result).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not result.metering.sent


async def test_an_item_takes_no_longer_than_its_time(stub: Stub) -> None:
    """A slow model's item fails at its own deadline; its neighbour is answered."""
    slow, quick = await ask(
        stub,
        item("faulty", features([1_500]), name="slow", time_left_s=0.3),
        item("echo", features([1]), name="quick"),
    )
    error = failure(slow)
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TRITON_TIMEOUT")
    assert slow.metering.sent
    assert quick.status.code == 0


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        (1, grpc.StatusCode.INTERNAL, "MODEL_FAILED"),
        (2, grpc.StatusCode.INVALID_ARGUMENT, "MODEL_REFUSED_INPUT"),
        (4, grpc.StatusCode.INTERNAL, "MODEL_OUTPUT_INVALID"),
    ],
)
async def test_a_model_that_fails_is_told_apart(
    server: Triton, keys: MeshKeys, door: Door, what: int, code: grpc.StatusCode, reason: str
) -> None:
    """Each kind of failure has its status, and the model's own words stay inside."""
    async with local(keys, server.url, **door(server)) as stub:
        [result] = await ask(stub, item("faulty", features([what])), timeout=30)
        error = failure(result)
    assert (error.code, error.reason) == (code, reason)
    assert "1234" not in str(result)
    assert result.metering.sent


async def test_descriptions_are_the_models_own(stub: Stub) -> None:
    """Describe gives tensors with the batch dimension, versions, digests, state."""
    response = await stub.Describe(inference_pb2.DescribeRequest(model="batched"))
    assert [(m.name, m.version) for m in response.models] == [("batched", "1"), ("batched", "2")]
    for model in response.models:
        assert model.state == inference_pb2.MODEL_STATE_READY
        assert model.max_batch_size == 8
        assert not model.streaming
        assert len(model.artifact_digest) == 32
        assert [(t.name, list(t.shape)) for t in model.inputs] == [("features", [-1, 3])]
        assert [(t.name, list(t.shape)) for t in model.outputs] == [("sum", [-1, 1])]
    everything = await stub.Describe(inference_pb2.DescribeRequest())
    assert {m.name for m in everything.models} >= {"echo", "echo_types", "batched", "words"}
    error = await refusal(stub.Describe(inference_pb2.DescribeRequest(model="nope")))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")


async def test_a_caller_that_leaves_frees_its_place(server: Triton, keys: MeshKeys) -> None:
    """With one place for a model, a cancelled call does not keep it."""
    async with local(keys, server.url, model_concurrency=1) as stub:
        slow = asyncio.ensure_future(ask(stub, item("faulty", features([1000]))))
        await asyncio.sleep(0.3)
        slow.cancel()
        [result] = await ask(stub, item("faulty", features([50])))
    assert result.status.code == 0


async def test_too_many_for_one_model_are_refused(server: Triton, keys: MeshKeys) -> None:
    """Beyond the places and the queue of a model: RESOURCE_EXHAUSTED, at once; others go on."""
    async with local(keys, server.url, model_concurrency=1, model_waiting=1) as stub:
        items = [item("faulty", features([200]), name=f"{n}") for n in range(4)]
        results = await ask(stub, *items, item("echo", features([1]), name="other"))
    codes = sorted(r.status.code for r in results)
    assert codes == [0, 0, 0, 8, 8]
    busy = [failure(r) for r in results if r.status.code]
    assert {e.reason for e in busy} == {"MODEL_BUSY"}


async def test_items_that_share_a_request_keep_their_answers(stub: Stub) -> None:
    """Rows of many items ride together, and each item gets its own part and metering."""
    items = [
        item("batched", features(*[[n, row, 1] for row in range(1 + n % 3)]), name=f"i{n}")
        for n in range(40)
    ]
    results = await ask(stub, *items)
    for n, result in enumerate(results):
        assert result.status.code == 0, result.status
        rows = tensors.to_numpy(result.outputs[0]).tolist()
        assert rows == [[n + row + 1] for row in range(1 + n % 3)]
        assert result.metering.bytes_out > 0
        assert result.metering.cost.nanos > 0


async def test_a_bad_item_does_not_take_its_companions_along(stub: Stub) -> None:
    """A model that fails because of one item's rows is asked again for the others."""
    items = [item("picky", features([n]), name=f"i{n}") for n in range(6)]
    results = await ask(stub, *items)
    assert [r.status.code for r in results] == [0, 0, 0, 13, 0, 0]
    assert failure(results[3]).reason == "MODEL_FAILED"


async def test_items_that_share_a_request_keep_their_own_time(stub: Stub) -> None:
    """One with little time fails alone, while the others wait for the slow model."""
    short = item("picky", features([400]), name="short", time_left_s=0.1)
    long = item("picky", features([0]), name="long")
    first, second = await ask(stub, short, long)
    assert failure(first).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert second.status.code == 0


async def test_the_trace_of_an_item_reaches_triton(
    server: Triton, keys: MeshKeys, door: Door
) -> None:
    """The headers of the item itself, also where its neighbour has another trace."""
    parents = [f"00-{n:032x}-{n:016x}-01" for n in (1, 2)]
    async with local(keys, server.url, **door(server)) as stub:
        items = [
            item("headers", features([1]), name=parent, trace={"traceparent": parent})
            for parent in parents
        ]
        results = await ask(stub, *items)
    assert [r.status.code for r in results] == [0, 0]
    seen = [tensors.decode_bytes(r.outputs[0].raw)[0].decode() for r in results]
    # Where this process records spans, a span of local's own stands between; the trace is the same.
    assert [s.split("-")[1] for s in seen] == [p.split("-")[1] for p in parents]


async def test_small_requests_of_a_quick_model_go_by_http(
    server: Triton, keys: MeshKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once Triton has said that it is quick; the answer is the same, and metered as before."""
    by_http: list[bytes] = []
    post = Wire.post

    async def noted(self: Wire, request: bytes, timeout: float) -> Reply:
        by_http.append(request)
        return await post(self, request, timeout)

    monkeypatch.setattr(Wire, "post", noted)
    given = features([1.5, -2.0])
    async with local(keys, server.url, triton_http=server.http_address) as stub:
        async with asyncio.timeout(30):
            while not by_http:
                [result] = await ask(stub, item("echo", given))
                assert list(result.outputs) == list(given.tensors)
        assert given.tensors[0].raw in by_http[0]
        assert result.metering.sent
        assert result.metering.bytes_out == len(by_http[0])
        assert result.metering.bytes_in > 8
    async with local(keys, server.url, triton_http=f"127.0.0.1:{free_port()}") as stub:
        before = len(by_http)
        async with asyncio.timeout(30):
            while len(by_http) < before + 3:  # nobody listens there: gRPC answers
                [result] = await ask(stub, item("echo", given))
                assert list(result.outputs) == list(given.tensors)
