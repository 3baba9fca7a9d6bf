"""Every kind of bad input meets its own clear error, all the way through the real mesh."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from services.chassis.identity import issue_token
from tests.integration.conftest import DIABETES, LOCAL, REMOTE, TUMOUR, MeshUnderTest, request
from tests.support import client, refusal
from twinpath.common.v1 import decision_pb2, value_pb2
from twinpath.router.v1 import router_pb2, router_pb2_grpc

pytestmark = pytest.mark.integration

Code = grpc.StatusCode
KNOWN = {"tumour_stale": 568, "tumour_null": 567, "unknown": 9999, "diabetes_null": 439}


def number(value: float) -> value_pb2.Value:
    """A floating-point value."""
    return value_pb2.Value(double_value=value)


def text(value: str) -> value_pb2.Value:
    """A text value."""
    return value_pb2.Value(string_value=value)


def whole(value: int) -> value_pb2.Value:
    """A whole number."""
    return value_pb2.Value(int64_value=value)


@dataclass(frozen=True)
class Bad:
    """A bad request and the error that it must meet; `fields` are named in BadRequest."""

    request: router_pb2.InferRequest
    code: Code
    reason: str = ""
    fields: set[str] = field(default_factory=set)


def diabetes(entity: dict[str, Any], **fields: value_pb2.Value) -> router_pb2.InferRequest:
    """A request with an entity and fields of its own."""
    return router_pb2.InferRequest(task=DIABETES, entity=entity, fields=fields)


BAD = {
    "unknown task": Bad(request("no_such_task"), Code.NOT_FOUND, "TASK_UNKNOWN"),
    "no task": Bad(request(""), Code.INVALID_ARGUMENT, fields={"task"}),
    "task that is no name": Bad(request("Not A Name!"), Code.INVALID_ARGUMENT, fields={"task"}),
    "missing join key": Bad(
        diabetes({}), Code.INVALID_ARGUMENT, "INVALID_REQUEST", {"entity[patient_id]"}
    ),
    "null join key": Bad(
        diabetes({"patient_id": value_pb2.Value()}),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"entity[patient_id]"},
    ),
    "unknown join key": Bad(
        diabetes({"patient_id": whole(17), "shoe_size": whole(44)}),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"entity[shoe_size]"},
    ),
    "join key of the wrong type": Bad(
        diabetes({"patient_id": text("17")}),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"entity[patient_id]"},
    ),
    "unknown field": Bad(
        diabetes({"patient_id": whole(17)}, shoe_size=whole(44)),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"fields[shoe_size]"},
    ),
    "field of the wrong type": Bad(
        diabetes({"patient_id": whole(17)}, bmi_now=text("a lot")),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"fields[bmi_now]"},
    ),
    "NaN": Bad(
        diabetes({"patient_id": whole(17)}, bmi_now=number(math.nan)),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"fields[bmi_now]"},
    ),
    "infinity": Bad(
        diabetes({"patient_id": whole(17)}, bmi_now=number(-math.inf)),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"fields[bmi_now]"},
    ),
    "everything wrong at once": Bad(
        diabetes({"shoe_size": whole(1)}, bmi_now=text("x"), colour=text("red")),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"entity[patient_id]", "entity[shoe_size]", "fields[bmi_now]", "fields[colour]"},
    ),
    "purpose that is no name": Bad(
        request(purpose="To sell things"), Code.INVALID_ARGUMENT, fields={"purpose"}
    ),
    "key that is too long": Bad(
        request(idempotency_key="k" * 257), Code.INVALID_ARGUMENT, fields={"idempotency_key"}
    ),
    "entity without features": Bad(request(patient_id=KNOWN["unknown"]), Code.FAILED_PRECONDITION),
    "stale features where the task refuses them": Bad(
        request(TUMOUR, KNOWN["tumour_stale"]), Code.FAILED_PRECONDITION
    ),
    "null feature where the task refuses it": Bad(
        request(TUMOUR, KNOWN["tumour_null"]), Code.FAILED_PRECONDITION
    ),
    "a purpose that policy forbids": Bad(
        request(purpose="marketing"), Code.PERMISSION_DENIED, "POLICY_REFUSED"
    ),
    "the path that policy forbids": Bad(
        request(TUMOUR, only_path=REMOTE), Code.FAILED_PRECONDITION, "NO_CANDIDATE_ON_PATH"
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_meets_its_error(mesh: MeshUnderTest, name: str) -> None:
    """The code, the reason and each wrong field are those of the contract; no value leaks."""
    bad = BAD[name]
    before = await mesh.standin()
    async with mesh.router() as router:
        error = await refusal(router.Infer(bad.request, timeout=10))
        explained = (
            await refusal(
                router.Explain(router_pb2.ExplainRequest(request=bad.request), timeout=10)
            )
            if bad.code is Code.INVALID_ARGUMENT
            else None
        )
    assert error.code is bad.code, error
    if bad.reason:
        assert error.reason == bad.reason
    assert {place for place, _ in error.violations} == bad.fields
    assert "a lot" not in str(error)
    assert explained is None or explained.code is bad.code
    assert (await mesh.standin())["body_bytes"] == before["body_bytes"]


async def test_without_an_identity_nothing_is_answered(mesh: MeshUnderTest) -> None:
    """No token, a forged one and an expired one are UNAUTHENTICATED."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(mesh.launcher.keys.identity.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    stranger = Ed25519PrivateKey.generate()
    tokens = {
        "": None,
        "not-a-token": None,
        issue_token(stranger, "me", roles=["caller"], lifetime_s=60): "TOKEN_INVALID",
        issue_token(
            key, "me", roles=["caller"], lifetime_s=60, now=time.time() - 3600
        ): "TOKEN_EXPIRED",
    }
    for token, reason in tokens.items():
        async with client(mesh.address("router"), token) as channel:
            error = await refusal(router_pb2_grpc.RouterStub(channel).Infer(request()))
        assert error.code is Code.UNAUTHENTICATED
        assert reason in (None, error.reason)


@pytest.mark.parametrize("role", ["auditor", "privacy_officer", "feature_writer", "service:audit"])
async def test_the_wrong_identity_may_not_decide(mesh: MeshUnderTest, role: str) -> None:
    """An identity that is known but not listed for the method is PERMISSION_DENIED."""
    async with mesh.router(role) as router:
        error = await refusal(router.Infer(request()))
    assert error.code is Code.PERMISSION_DENIED
    assert error.reason == "METHOD_NOT_ALLOWED"


async def test_an_expired_deadline_makes_no_attempt(mesh: MeshUnderTest) -> None:
    """A call whose time is up on arrival is DEADLINE_EXCEEDED, and the vendor hears nothing."""
    before = await mesh.standin()
    async with mesh.router() as router:
        for _ in range(5):
            error = await refusal(router.Infer(request(only_path=REMOTE), timeout=0.0001))
            assert error.code is Code.DEADLINE_EXCEEDED
    assert (await mesh.standin())["body_bytes"] == before["body_bytes"]


async def test_a_message_that_is_too_large_is_refused(mesh: MeshUnderTest) -> None:
    """More than the message limit is RESOURCE_EXHAUSTED; the router goes on."""
    async with mesh.router() as router:
        huge = request(fields={"bmi_now": value_pb2.Value(bytes_value=b"x" * (17 * 1024 * 1024))})
        error = await refusal(router.Infer(huge, timeout=20))
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert (await router.Infer(request(), timeout=10)).decision_id


async def test_a_batch_fails_item_by_item(mesh: MeshUnderTest) -> None:
    """Bad items of a batch fail alone, with the status that they would have had alone."""
    items = [
        router_pb2.BatchItem(id="good", request=request()),
        router_pb2.BatchItem(id="unknown", request=request("no_such_task")),
        router_pb2.BatchItem(id="bad", request=diabetes({})),
        router_pb2.BatchItem(id="kept", request=request(TUMOUR)),
    ]
    async with mesh.router() as router:
        reply = await router.BatchInfer(router_pb2.BatchInferRequest(items=items), timeout=10)
        doubled = await refusal(
            router.BatchInfer(router_pb2.BatchInferRequest(items=[items[0], items[0]]))
        )
    codes = {result.id: result.status.code for result in reply.results}
    assert codes == {
        "good": 0,
        "unknown": Code.NOT_FOUND.value[0],
        "bad": Code.INVALID_ARGUMENT.value[0],
        "kept": 0,
    }
    assert doubled.code is Code.INVALID_ARGUMENT


async def test_a_default_in_place_of_a_feature_is_marked(mesh: MeshUnderTest) -> None:
    """Where the task's rule gives a default, the reply says for which feature."""
    async with mesh.router() as router:
        reply = await router.Infer(request(patient_id=KNOWN["diabetes_null"], only_path=LOCAL))
    handled = {item.feature: item.action for item in reply.feature_handling}
    assert handled["diabetes_serum__s5"] == decision_pb2.FEATURE_ACTION_DEFAULTED
