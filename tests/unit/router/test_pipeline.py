"""The way of one request, over fakes: what must hold whatever the paths do."""

from __future__ import annotations

import asyncio

import pytest

from services.chassis.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
)
from services.router.limiter import Priority
from tests.unit.router.ports import World, answer, ask, failure
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import digest
from twinpath.inference.v1 import grant_pb2, inference_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE


async def test_both_paths_get_the_same_model_input() -> None:
    """The same request sends the same bytes and the same digest to either path."""
    world = World()
    first = await world.decide(only_path=LOCAL)
    second = await world.decide(only_path=REMOTE)
    (local,), (remote,) = world.local.items, world.remote.items
    assert local.input.SerializeToString() == remote.input.SerializeToString()
    assert first.input_digest == second.input_digest == digest.digest(local.input.tensors)


async def test_an_answer_has_an_intent_and_an_outcome() -> None:
    """A decision leaves an INTENT and then an OUTCOME, and names its leaf in the reply."""
    world = World()
    reply = await world.decide()
    assert world.audit.kinds() == ["INTENT", "OUTCOME"]
    assert world.audit.log[reply.leaf_index].record.decision_id == reply.decision_id


async def test_no_outcome_no_answer() -> None:
    """If the OUTCOME can't be made durable, the caller gets an error and no output."""
    world = World()

    def break_the_log(item: inference_pb2.InferItem) -> None:
        world.audit.error = UnavailableError("AUDIT_UNREACHABLE", "the log is away")

    world.local.behave = break_the_log
    with pytest.raises(UnavailableError, match="log is away"):
        await world.decide()


async def test_nothing_leaves_before_the_intent_is_durable() -> None:
    """While the INTENT is not on disk, the vendor is not called; after that it is."""
    world = World()
    gate = asyncio.Event()
    world.audit.delay = gate.wait
    task = asyncio.create_task(world.decide(only_path=REMOTE))
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.remote.items == []
    gate.set()
    await task
    assert len(world.remote.items) == 1


async def test_an_intent_that_fails_stops_egress() -> None:
    """If the INTENT can't be written, the vendor is not called at all."""
    world = World()
    world.audit.error = UnavailableError("AUDIT_UNREACHABLE", "the log is away")
    with pytest.raises(UnavailableError):
        await world.decide(only_path=REMOTE)
    assert world.remote.items == []


async def test_restricted_data_is_never_sent_to_a_vendor() -> None:
    """With the local path down, a restricted task is refused, recorded, and nothing is sent."""
    world = World()
    world.local.down = True
    with pytest.raises(UnavailableError) as caught:
        await world.decide("tumour_triage")
    assert "restricted_never_leaves" in caught.value.metadata["tumour_large"]
    assert world.remote.items == []
    assert world.audit.kinds() == ["REFUSED"]


async def test_restricted_data_does_not_fall_back_to_a_vendor() -> None:
    """When the local attempt fails in flight, the refused remote candidate is not tried."""
    world = World()
    world.local.behave = lambda item: failure(item, UnavailableError("TRITON_UNAVAILABLE", "x"))
    with pytest.raises(UnavailableError, match="TRITON_UNAVAILABLE"):
        await world.decide("tumour_triage")
    assert world.remote.items == []
    assert world.audit.kinds() == ["INTENT", "FAILED"]


async def test_the_strictest_data_class_counts() -> None:
    """A request, or the features, can make a task's data class stricter and never looser."""
    world = World()
    with pytest.raises(ServiceError) as caught:
        await world.decide(only_path=REMOTE, data_class=context_pb2.DATA_CLASS_RESTRICTED)
    assert "restricted_never_leaves" in caught.value.metadata["diabetes_large"]
    world.features.data_class = context_pb2.DATA_CLASS_RESTRICTED
    with pytest.raises(ServiceError):
        await world.decide(only_path=REMOTE, data_class=context_pb2.DATA_CLASS_PUBLIC)
    assert world.remote.items == []


async def test_policy_alone_gives_permission_denied() -> None:
    """When every candidate is refused by policy, the caller may not, whatever is healthy."""
    world = World()
    with pytest.raises(PermissionDeniedError) as caught:
        await world.decide(purpose="marketing")
    assert caught.value.reason == "POLICY_REFUSED"
    assert world.audit.kinds() == ["REFUSED"]


async def test_the_local_path_answers_when_the_vendor_fails() -> None:
    """A failed attempt is followed by the next candidate; both attempts are metered."""
    world = World()
    world.local.behave = lambda item: failure(item, UnavailableError("TRITON_UNAVAILABLE", "x"))
    reply = await world.decide()
    assert reply.answered_by.path == REMOTE
    assert reply.fallback
    assert [a.reason for a in reply.attempts] == ["TRITON_UNAVAILABLE", ""]
    assert [a.bytes_out for a in reply.attempts] == [52, 52]
    kinds = [decision_pb2.ATTEMPT_KIND_PRIMARY, decision_pb2.ATTEMPT_KIND_FALLBACK]
    assert [a.kind for a in reply.attempts] == kinds


async def test_a_refusal_by_content_policy_is_final() -> None:
    """When the vendor's content policy refuses, no other candidate is asked."""
    world = World()

    def filtered(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        result = answer(item)
        result.finish_reason = inference_pb2.FINISH_REASON_CONTENT_FILTER
        return result

    world.local.behave = filtered
    with pytest.raises(FailedPreconditionError) as caught:
        await world.decide()
    assert caught.value.reason == "CONTENT_FILTERED"
    assert world.remote.items == []


async def test_an_output_that_breaks_the_contract_is_a_failed_attempt() -> None:
    """An output out of its range reaches no caller; the next candidate answers."""
    world = World()

    def wild(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        result = answer(item)
        result.outputs[0].raw = b"\x00\x00\x80\x7f"  # infinity
        return result

    world.local.behave = wild
    reply = await world.decide()
    assert reply.attempts[0].reason == "OUTPUT_CONTRACT"
    assert reply.answered_by.path == REMOTE


async def test_a_grant_fits_its_attempt() -> None:
    """What goes to the vendor carries a grant for just this decision, input and candidate."""
    world = World()
    reply = await world.decide(only_path=REMOTE)
    (item,) = world.remote.items
    public = world.key.public_key()
    public.verify(item.grant.signature, b"twinpath.grant.v1\x00" + item.grant.claims)
    claims = grant_pb2.GrantClaims.FromString(item.grant.claims)
    assert claims.decision_id == reply.decision_id
    assert claims.input_digest == item.input.digest
    assert claims.candidate == "diabetes_large"
    assert claims.provider == item.provider == "standin"


async def test_one_key_gives_one_decision() -> None:
    """Asking again with the same key gives the same decision, and no model is asked."""
    world = World()
    first = await world.decide(idempotency_key="k1")
    again = await world.decide(idempotency_key="k1")
    assert again.repeated
    assert not first.repeated
    assert again.decision_id == first.decision_id
    assert again.outputs == first.outputs
    assert len(world.local.items) == 1


async def test_concurrent_copies_have_one_effect() -> None:
    """Two copies at once give one OUTCOME and the same answer, even without a working claim."""
    world = World()

    async def no_claim(decision_id: str, ttl_s: float) -> bool:
        return True

    world.claims.take = no_claim  # type: ignore[method-assign]
    values = iter([100.0, 200.0])

    async def slow(item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        import numpy as np

        result = answer(item)
        result.outputs[0].raw = np.array([[next(values)]], "f4").tobytes()
        await asyncio.sleep(0.01)
        return result

    world.local.behave = slow
    await world.board.refresh()
    request = ask("diabetes_progression", idempotency_key="k2")
    a, b = await asyncio.gather(
        world.pipeline.decide(request, world.call()), world.pipeline.decide(request, world.call())
    )
    assert a.outputs == b.outputs
    assert world.audit.kinds().count("OUTCOME") == 1
    assert len(world.local.items) == 2


async def test_a_key_with_another_request_is_refused() -> None:
    """The same key with other parameters is FAILED_PRECONDITION."""
    world = World()
    await world.decide(idempotency_key="k3")
    with pytest.raises(FailedPreconditionError) as caught:
        await world.decide(idempotency_key="k3", patient=18)
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_a_key_whose_answer_was_erased_gets_no_other_answer() -> None:
    """The decision stands; what was said is out of reach, and no model is asked again."""
    world = World()
    await world.decide(idempotency_key="k4")
    kinds = world.audit.kinds()
    for entry in world.audit.log:
        entry.ClearField("payload")
    with pytest.raises(FailedPreconditionError) as caught:
        await world.decide(idempotency_key="k4")
    assert caught.value.reason == "REPLY_GONE"
    assert world.audit.kinds() == kinds
    assert len(world.local.items) == 1


async def test_keys_of_two_callers_are_two_keys() -> None:
    """Callers can't reach each other's decisions by guessing a key."""
    world = World()
    await world.board.refresh()
    request = ask("diabetes_progression", idempotency_key="k")
    a = await world.pipeline.decide(request, world.call(subject="alice"))
    b = await world.pipeline.decide(request, world.call(subject="bob"))
    assert a.decision_id != b.decision_id
    assert not b.repeated


async def test_features_that_are_missing_follow_the_tasks_rule() -> None:
    """A null takes the task's default and is marked; the restricted task refuses instead."""
    world = World()
    null = decision_pb2.FEATURE_STATUS_NULL
    world.features.statuses["diabetes_serum__s5"] = null
    reply = await world.decide()
    (handled,) = reply.feature_handling
    assert handled.feature == "diabetes_serum__s5"
    assert handled.action == decision_pb2.FEATURE_ACTION_DEFAULTED
    assert world.audit.log[-1].record.feature_handling[0] == handled
    world.features.statuses["tumour_measurements__mean_texture"] = null
    with pytest.raises(FailedPreconditionError) as caught:
        await world.decide("tumour_triage")
    assert caught.value.metadata == {"tumour_measurements__mean_texture": "null"}


async def test_bad_requests_name_every_mistake() -> None:
    """Missing and unknown keys and fields are all named at once."""
    world = World()
    request = ask("diabetes_progression")
    request.entity.clear()
    request.entity["person"].string_value = "x"
    request.fields["shoe_size"].double_value = 42
    request.fields["bmi_now"].string_value = "many"
    with pytest.raises(InvalidArgumentError) as caught:
        await world.pipeline.decide(request, world.call())
    assert [field for field, _ in caught.value.violations] == [
        "entity[patient_id]",
        "entity[person]",
        "fields[bmi_now]",
        "fields[shoe_size]",
    ]


async def test_an_unknown_task_is_not_found() -> None:
    """A task that the catalog does not have is NOT_FOUND."""
    world = World()
    with pytest.raises(NotFoundError):
        await world.pipeline.decide(ask("nothing_here"), world.call())


async def test_a_value_that_is_no_number_is_refused() -> None:
    """A feature that is NaN where the contract allows none is INVALID_ARGUMENT with its name."""
    world = World()
    world.features.values["diabetes_baseline__bmi"] = float("nan")
    with pytest.raises(InvalidArgumentError) as caught:
        await world.decide()
    assert caught.value.violations[0][0] == "diabetes_baseline__bmi"


async def test_more_than_the_limit_is_refused_at_once() -> None:
    """Beyond the limit in flight a request is refused with a time to come back."""
    world = World()
    for _ in range(world.limiter.limit):
        world.limiter.acquire(world.clock.now, Priority.INTERACTIVE)
    with pytest.raises(ResourceExhaustedError) as caught:
        await world.decide()
    assert caught.value.retry_after


async def test_explain_runs_nothing() -> None:
    """Explain gives the plan with reasons, calls no model and writes no record."""
    world = World()
    await world.board.refresh()
    response = await world.pipeline.explain(ask("tumour_triage"), world.call())
    ranks = {e.candidate.id: e.rank for e in response.plan.entries}
    assert ranks == {"tumour_small": 1, "tumour_large": 0}
    assert world.local.items == world.remote.items == []
    assert world.audit.log == []


async def test_every_failed_attempt_is_in_the_failed_record() -> None:
    """When nobody answers, the FAILED record lists each attempt with its reason."""
    world = World()
    world.local.behave = lambda item: failure(item, UnavailableError("TRITON_UNAVAILABLE", "x"))
    world.remote.behave = lambda item: failure(item, DataLossError("VENDOR_GARBAGE", "y"))
    with pytest.raises(UnavailableError) as caught:
        await world.decide()
    assert caught.value.reason == "ALL_CANDIDATES_FAILED"
    record = world.audit.log[-1].record
    reasons = [a.reason for a in record.attempts]
    assert reasons == ["TRITON_UNAVAILABLE", "VENDOR_GARBAGE", "VENDOR_GARBAGE"]


async def test_a_caller_that_goes_away_leaves_a_record_of_what_was_taken() -> None:
    """The INTENT is closed with the attempt that was cut off, at its expected cost."""
    world = World()
    reached = asyncio.Event()

    async def hang(item: inference_pb2.InferItem) -> None:
        reached.set()
        await asyncio.Event().wait()

    world.remote.behave = hang
    asked = asyncio.ensure_future(world.decide(only_path=REMOTE))
    await reached.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.audit.kinds() == ["INTENT", "FAILED"]
    record = world.audit.log[-1].record
    assert record.reason == "CALLER_GONE"
    (attempt,) = record.attempts
    assert attempt.cancelled
    assert attempt.candidate.path == REMOTE
    assert attempt.cost.nanos > 0


async def test_a_caller_that_goes_away_early_is_recorded_after_its_intent() -> None:
    """The FAILED never comes before the INTENT, and nobody was asked."""
    world = World()
    held = asyncio.Event()
    world.audit.delay = held.wait
    asked = asyncio.ensure_future(world.decide(only_path=REMOTE))
    for _ in range(20):
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert world.audit.kinds() == []
    held.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.audit.kinds() == ["INTENT", "FAILED"]
    assert not world.audit.log[-1].record.attempts
    assert not world.remote.items
