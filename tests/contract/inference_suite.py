"""What every implementation of `twinpath.inference.v1.Inference` must do: one suite for all.

A test module derives a class from `InferenceContract` and gives it a `subject` fixture. The same
tests then run on `local` over a real Triton, on `remote` before a real stand-in vendor, and on
the fake. Each subject has two models: `echo` (FP32 `features`, rank 2) and `echo_types` (a tensor
of every datatype, rank 2), both of which return what they get.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.chassis.errors import ServiceError, from_status
from tests import canonical
from tests.canonical import Wire
from tests.support import MeshKeys, client, refusal
from twinpath.common.v1 import context_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2


@dataclass
class Subject:
    """An implementation under test.

    Attributes:
        path: Which path it is.
        address: Where it listens, behind the chassis.
        stub: Its client, with the router's identity.
        keys: The keys of its mesh.
        arrived: Returns every model input that has reached a model, as the model's side saw it.
        dress: Adds to an item what this path needs beside the contract (a grant).
        streams: Whether it answers InferStream.
    """

    path: context_pb2.Path
    address: str
    stub: inference_pb2_grpc.InferenceStub
    keys: MeshKeys
    arrived: Callable[[], Awaitable[list[list[Wire]]]]
    dress: Callable[[inference_pb2.InferItem], None] = lambda _item: None
    streams: bool = True

    def item(
        self, model: str, model_input: tensor_pb2.ModelInput, name: str = "item-1", **fields: Any
    ) -> inference_pb2.InferItem:
        """Return an item as the router sends it."""
        context = {"id": name, **fields.pop("context", {})}
        item = inference_pb2.InferItem(
            context=context, model=model, input=model_input, decision_id="d-1", **fields
        )
        self.dress(item)
        return item

    async def infer(self, *items: inference_pb2.InferItem) -> list[inference_pb2.InferResult]:
        """Ask, and return the results."""
        request = inference_pb2.InferRequest(items=items)
        response = await self.stub.Infer(request, timeout=20)
        return list(response.results)

    async def failure(self, item: inference_pb2.InferItem) -> ServiceError:
        """Return the error of one item that must fail before anything is sent."""
        before = len(await self.arrived())
        [result] = await self.infer(item)
        error = from_status(result.status)
        assert error is not None, result
        assert not result.outputs
        assert not result.metering.sent
        assert result.id == item.context.id
        assert len(await self.arrived()) == before
        return error


def row(*values: float) -> tensor_pb2.ModelInput:
    """Return one row of `features`, normalized and digested by the product."""
    return digested(tensors.from_numpy("features", np.array([values], dtype=np.float32)))


def digested(*tensor: tensor_pb2.Tensor) -> tensor_pb2.ModelInput:
    """Return a model input as the router makes it."""
    normal = tensors.normalize(tensor)
    return tensor_pb2.ModelInput(tensors=normal, digest=digest.digest(normal))


def as_they_are(*tensor: tensor_pb2.Tensor) -> tensor_pb2.ModelInput:
    """Return a model input that only digests: for tensors that are wrong on purpose."""
    return tensor_pb2.ModelInput(tensors=tensor, digest=digest.digest(tensor))


def wire(tensor: tensor_pb2.Tensor) -> Wire:
    """Return a message's tensor in the independent form."""
    name = tensor_pb2.Datatype.Name(tensor.datatype).removeprefix("DATATYPE_")
    return Wire(tensor.name, name, tuple(tensor.shape), tensor.raw)


@st.composite
def any_tensor(draw: st.DrawFn, datatype: str) -> Wire:
    """A tensor of a datatype with any bits at all: every NaN, -0.0, BOOLs of 02, empty ones."""
    shape = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    count = shape[0] * shape[1]
    if datatype == "BYTES":
        elements = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
        raw = canonical.byte_strings(*elements)
    else:
        size = canonical.SIZES[datatype]
        odd = [bytes(size - 1) + b"\x80", b"\xff" * size, bytes(size)]
        element = st.one_of(st.binary(min_size=size, max_size=size), st.sampled_from(odd))
        raw = b"".join(draw(st.lists(element, min_size=count, max_size=count)))
    return Wire(f"t_{datatype.lower()}", datatype, shape, raw)


ALL_TYPES = st.tuples(*(any_tensor(datatype) for datatype in [*canonical.SIZES, "BYTES"]))


class InferenceContract:
    """The suite. Derived classes give `subject`."""

    async def test_an_answer_has_everything(self, subject: Subject) -> None:
        """Id, outputs as sent, version, latency, bytes."""
        given = row(1.5, -2.25, float("inf"))
        [result] = await subject.infer(subject.item("echo", given))
        assert result.status.code == 0
        assert result.id == "item-1"
        assert list(result.outputs) == list(given.tensors)
        assert result.metering.reported_version == "1"
        assert result.metering.latency_us > 0
        assert result.metering.bytes_out > 0
        assert result.metering.bytes_in > 0
        assert result.metering.sent

    @settings(
        max_examples=40,
        deadline=None,
        # No shrinking: each example is a call, and which tensor differs is seen at once.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,
            HealthCheck.too_slow,
        ],
    )
    @given(drawn=ALL_TYPES)
    async def test_the_model_gets_the_bytes_that_were_digested(
        self, subject: Subject, drawn: tuple[Wire, ...]
    ) -> None:
        """What arrives is what was normalized, and its digest is the one that was sent."""
        sent = digested(
            *(
                tensor_pb2.Tensor(
                    name=w.name,
                    datatype=tensor_pb2.Datatype.Value(f"DATATYPE_{w.datatype}"),
                    shape=w.shape,
                    raw=w.raw,
                )
                for w in drawn
            )
        )
        [result] = await subject.infer(subject.item("echo_types", sent))
        assert result.status.code == 0, result.status
        expected = canonical.normalize(drawn)
        arrived = sorted((await subject.arrived())[-1], key=lambda w: w.name.encode())
        assert arrived == expected
        assert canonical.digest(arrived) == sent.digest
        answered = sorted(map(wire, result.outputs), key=lambda w: w.name.encode())
        assert answered == expected

    async def test_items_stand_for_themselves(self, subject: Subject) -> None:
        """Results are in the order of the items, and a bad item fails alone."""
        results = await subject.infer(
            subject.item("echo", row(1), "a"),
            subject.item("no_such_model", row(2), "b"),
            subject.item("echo", row(3), "c"),
        )
        assert [r.id for r in results] == ["a", "b", "c"]
        assert [r.status.code for r in results] == [0, grpc.StatusCode.NOT_FOUND.value[0], 0]
        assert [tensors.to_numpy(r.outputs[0]).item() for r in results[::2]] == [1, 3]

    async def test_many_items_of_one_call_keep_their_answers(self, subject: Subject) -> None:
        """A hundred items at the same time: each gets its own answer."""
        items = [subject.item("echo", row(n), f"i{n}") for n in range(100)]
        results = await subject.infer(*items)
        assert [(r.id, tensors.to_numpy(r.outputs[0]).item()) for r in results] == [
            (f"i{n}", n) for n in range(100)
        ]

    async def test_a_large_tensor_passes(self, subject: Subject) -> None:
        """A million numbers come back unchanged."""
        values = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)
        given = digested(tensors.from_numpy("features", values))
        [result] = await subject.infer(subject.item("echo", given))
        assert list(result.outputs) == list(given.tensors)

    async def test_a_changed_input_is_data_loss(self, subject: Subject) -> None:
        """One bit that differs from what was digested, in any part of the tensor."""
        for change in ("raw", "shape", "name", "datatype"):
            given = row(1, 2)
            item = subject.item("echo", given)
            [tensor] = item.input.tensors
            if change == "raw":
                tensor.raw = bytes([tensor.raw[0] ^ 1]) + tensor.raw[1:]
            elif change == "shape":
                tensor.shape[:] = [2, 1]
            elif change == "name":
                tensor.name = "featurez"
            else:
                tensor.datatype = tensor_pb2.DATATYPE_INT32
            error = await subject.failure(item)
            assert error.code is grpc.StatusCode.DATA_LOSS
            assert error.reason == "INPUT_DIGEST_MISMATCH"

    async def test_typed_contents_have_no_digest(self, subject: Subject) -> None:
        """Contents one by one are normalized by the service; with a digest they are refused."""
        typed = tensor_pb2.Tensor(
            name="features",
            datatype=tensor_pb2.DATATYPE_FP32,
            shape=[1, 2],
            contents={"fp32_contents": [-0.0, 2.5]},
        )
        item = subject.item("echo", tensor_pb2.ModelInput(tensors=[typed]))
        [result] = await subject.infer(item)
        assert result.status.code == 0, result.status
        assert list(result.outputs) == list(row(0.0, 2.5).tensors)
        with_digest = tensor_pb2.ModelInput(tensors=[typed], digest=row(0.0, 2.5).digest)
        error = await subject.failure(subject.item("echo", with_digest))
        assert error.reason == "INPUT_DIGEST_MISMATCH"

    @pytest.mark.parametrize(("model", "version"), [("nope", ""), ("echo", "77")])
    async def test_unknown_models_are_not_found(
        self, subject: Subject, model: str, version: str
    ) -> None:
        """Unknown names and unknown versions, with the name in the metadata."""
        error = await subject.failure(subject.item(model, row(1), version=version))
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert error.reason == "MODEL_UNKNOWN"
        assert error.metadata["model"] == model

    async def test_every_misfit_is_named(self, subject: Subject) -> None:
        """Type, shape, name and absence, each with its place, all at once."""
        wrong = [
            tensor_pb2.Tensor(name="a", datatype=tensors.FP32, shape=[1, 1], raw=bytes(4)),
            tensor_pb2.Tensor(name="t_fp32", datatype=tensors.FP64, shape=[1, 1], raw=bytes(8)),
            tensor_pb2.Tensor(name="t_fp64", datatype=tensors.FP64, shape=[1], raw=bytes(8)),
        ]
        error = await subject.failure(subject.item("echo_types", as_they_are(*wrong)))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.reason == "TENSOR_MISMATCH"
        fields = [field for field, _ in error.violations]
        assert fields[:3] == [
            "input.tensors[0].name",
            "input.tensors[1].datatype",
            "input.tensors[2].shape",
        ]

    async def test_a_missing_tensor_is_named(self, subject: Subject) -> None:
        """A model that gets something else instead of its input."""
        other = tensors.from_numpy("other", np.zeros((1, 1), dtype=np.float32))
        error = await subject.failure(subject.item("echo", digested(other)))
        assert [field for field, _ in error.violations] == [
            "input.tensors[0].name",
            "input.tensors",
        ]

    async def test_contents_must_fit_their_shape(self, subject: Subject) -> None:
        """Too few bytes, and BYTES that run past their end."""
        short = tensor_pb2.Tensor(
            name="features", datatype=tensors.FP32, shape=[1, 2], raw=bytes(7)
        )
        error = await subject.failure(subject.item("echo", as_they_are(short)))
        assert [field for field, _ in error.violations] == ["input.tensors[0].raw"]
        torn = tensor_pb2.Tensor(
            name="t_bytes", datatype=tensors.BYTES, shape=[1, 1], raw=b"\x09\0\0\0x"
        )
        error = await subject.failure(subject.item("echo_types", as_they_are(torn)))
        assert error.violations[0][0] == "input.tensors[0].raw"

    async def test_an_item_whose_time_is_up_is_not_worked_on(self, subject: Subject) -> None:
        """Its neighbour is."""
        late = subject.item("echo", row(1), "late", context={"time_left_us": 1})
        error = await subject.failure(late)
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        late = subject.item("echo", row(1), "late", context={"time_left_us": 1})
        results = await subject.infer(late, subject.item("echo", row(2), "fine"))
        assert [r.status.code for r in results] == [grpc.StatusCode.DEADLINE_EXCEEDED.value[0], 0]

    async def test_describe_says_what_the_model_wants(self, subject: Subject) -> None:
        """Name, version, path, state and tensors; a model that is not there is NOT_FOUND."""
        request = inference_pb2.DescribeRequest(model="echo")
        [model] = (await subject.stub.Describe(request, timeout=20)).models
        assert (model.name, model.version) == ("echo", "1")
        assert model.path == subject.path
        assert model.state == inference_pb2.MODEL_STATE_READY
        wanted = tensor_pb2.TensorSpec(name="features", datatype=tensors.FP32, shape=[-1, -1])
        assert list(model.inputs) == [wanted]
        assert list(model.outputs) == [wanted]
        everything = await subject.stub.Describe(inference_pb2.DescribeRequest(), timeout=20)
        names = [(m.name, m.version) for m in everything.models]
        assert {("echo", "1"), ("echo_types", "1")} <= set(names)
        assert names == sorted(names)
        unknown = inference_pb2.DescribeRequest(model="nope")
        error = await refusal(subject.stub.Describe(unknown, timeout=20))
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert error.reason == "MODEL_UNKNOWN"

    async def test_a_stream_ends_with_one_final_message(self, subject: Subject) -> None:
        """Chunks, then the final message with the metering and no outputs."""
        if not subject.streams:
            pytest.skip("this path does not stream yet")
        given = row(1, 2)
        request = inference_pb2.InferStreamRequest(item=subject.item("echo", given))
        messages = [m async for m in subject.stub.InferStream(request, timeout=20)]
        kinds = [m.WhichOneof("message") for m in messages]
        assert kinds == ["chunk"] * (len(kinds) - 1) + ["final"]
        assert list(messages[0].chunk.outputs) == list(given.tensors)
        final = messages[-1].final
        assert (final.id, final.status.code, list(final.outputs)) == ("item-1", 0, [])
        assert final.metering.first_chunk_us > 0
        assert final.metering.sent

    async def test_a_stream_that_fails_has_no_final_message(self, subject: Subject) -> None:
        """The call carries the error."""
        if not subject.streams:
            pytest.skip("this path does not stream yet")
        request = inference_pb2.InferStreamRequest(item=subject.item("nope", row(1)))
        came: list[Any] = []
        error = await refusal(_all(subject.stub.InferStream(request, timeout=20), came))
        assert {m.WhichOneof("message") for m in came} <= {"failed"}
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert error.reason == "MODEL_UNKNOWN"

    async def test_malformed_calls_are_refused_as_a_whole(self, subject: Subject) -> None:
        """No items, and two with the same id."""
        error = await refusal(subject.stub.Infer(inference_pb2.InferRequest(), timeout=20))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.violations[0][0] == "items"
        twice = [subject.item("echo", row(1), "same") for _ in range(2)]
        error = await refusal(
            subject.stub.Infer(inference_pb2.InferRequest(items=twice), timeout=20)
        )
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.violations[0][0] == "items[1].context.id"

    async def test_only_the_router_may_ask(self, subject: Subject) -> None:
        """No identity, another service's, a caller's own."""
        request = inference_pb2.InferRequest(items=[subject.item("echo", row(1))])
        before = len(await subject.arrived())
        for token, code in (
            ("", grpc.StatusCode.UNAUTHENTICATED),
            (subject.keys.token("service:features"), grpc.StatusCode.PERMISSION_DENIED),
            (subject.keys.token("alice", roles=["caller"]), grpc.StatusCode.PERMISSION_DENIED),
        ):
            async with client(subject.address, token) as channel:
                stub = inference_pb2_grpc.InferenceStub(channel)
                assert (await refusal(stub.Infer(request, timeout=20))).code is code
        assert len(await subject.arrived()) == before


async def _all(stream: Any, came: list[Any]) -> None:
    async for message in stream:
        came.append(message)  # noqa: PERF401 - what came before an error counts
