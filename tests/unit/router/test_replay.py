"""Replays over fakes: the same input, today's policy, a record of its own, and no copy kept."""

from __future__ import annotations

import numpy as np
import pytest

from services.chassis.errors import (
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    ServiceError,
    UnavailableError,
)
from services.router.replay import Replays
from services.router.steps import CatalogView
from tests.unit.router.ports import World, answer, ask, failure
from twinpath.common.v1 import context_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2
from twinpath.router.v1 import router_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE
OTHER = router_pb2.REPLAY_PATH_OTHER


class ReplayWorld(World):
    """A router over fakes that can replay."""

    def __init__(self) -> None:
        super().__init__()
        self.replays = Replays(
            steps=self.steps,
            dispatcher=self.pipeline._dispatcher,
            streams=self.streams,
            admission=self.pipeline._admission,
            audit=self.audit,
            catalog=lambda: CatalogView(self.catalog, stale=False),
            clock=self.clock,
            code_version="test",
        )

    async def replay(self, decision: str, **more) -> router_pb2.ReplayResponse:
        """Replay a decision."""
        await self.board.refresh()
        request = router_pb2.ReplayRequest(decision_id=decision, **more)
        return await self.replays.replay(request, self.call(subject="ann"))

    def says(self, value: float) -> None:
        """Let both paths say something else from now on."""

        def behave(item):
            result = answer(item)
            del result.outputs[:]
            result.outputs.append(tensors.from_numpy("progression", np.array([[value]], "f4")))
            return result

        self.local.behave = self.remote.behave = behave


async def test_a_replay_sends_the_recorded_input_to_the_recorded_candidate() -> None:
    """The features may have changed since; the bytes that go to the model have not."""
    world = ReplayWorld()
    first = await world.decide()
    world.features.values = {"diabetes_baseline__bmi": 99.0}
    found = await world.replay(first.decision_id)
    then, now = world.local.items
    assert then.input.SerializeToString() == now.input.SerializeToString()
    assert found.agrees
    assert found.recorded_by == found.replayed_by == first.answered_by
    assert world.remote.items == []


async def test_a_replay_on_the_other_path_goes_there_and_nowhere_else() -> None:
    """What the local path answered is asked of the vendor, and the other way round."""
    world = ReplayWorld()
    for path, other in ((LOCAL, REMOTE), (REMOTE, LOCAL)):
        first = await world.decide(only_path=path)
        found = await world.replay(first.decision_id, path=OTHER)
        assert (found.recorded_by.path, found.replayed_by.path) == (path, other)


async def test_a_replay_leaves_records_that_name_what_they_replay() -> None:
    """An INTENT and an OUTCOME with an id of their own, by whoever asked, about the same subject."""
    world = ReplayWorld()
    first = await world.decide()
    found = await world.replay(first.decision_id)
    intent, outcome = world.audit.log[2:]
    assert world.audit.kinds() == ["INTENT", "OUTCOME"] * 2
    for entry in (intent, outcome):
        assert entry.record.replay_of == first.decision_id
        assert entry.record.decision_id == found.decision_id != first.decision_id
        assert entry.record.caller.identity == "ann"
        assert entry.subject == world.audit.log[0].subject
        assert entry.input_digest == first.input_digest
        assert entry.record.lineage.views == world.audit.log[0].record.lineage.views
    assert not outcome.HasField("payload")


async def test_nothing_is_replayed_before_its_intent_is_durable() -> None:
    """A log that can't be written keeps the input where it is."""
    world = ReplayWorld()
    first = await world.decide()
    gone = len(world.remote.items)
    get = world.audit.get

    async def then_break(decision_id: str, *, payload: bool):
        found = await get(decision_id, payload=payload)
        world.audit.error = UnavailableError("AUDIT_UNREACHABLE", "away")
        return found

    world.audit.get = then_break  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await world.replay(first.decision_id, path=OTHER)
    assert len(world.remote.items) == gone


async def test_outputs_agree_within_the_tasks_tolerance_or_a_given_one() -> None:
    """The catalog says how much two answers may differ, and a question may say otherwise."""
    world = ReplayWorld()
    first = await world.decide()
    allowed = world.catalog.tasks["diabetes_progression"].outputs[0].tolerance.absolute
    assert allowed > 0
    world.says(150.0 + allowed / 2)
    assert (await world.replay(first.decision_id)).agrees
    strict = router_pb2.Tolerance(absolute=allowed / 4)
    found = await world.replay(first.decision_id, tolerance=strict)
    assert not found.agrees
    assert found.outputs[0].differing == 1
    assert found.outputs[0].max_absolute == pytest.approx(allowed / 2)
    world.says(150.0 + allowed * 2)
    assert not (await world.replay(first.decision_id)).agrees


async def test_policy_holds_for_a_replay() -> None:
    """A restricted decision is not replayed at a vendor; the refusal is recorded, nothing leaves."""
    world = ReplayWorld()
    first = await world.decide("tumour_triage")
    with pytest.raises(PermissionDeniedError) as caught:
        await world.replay(first.decision_id, path=OTHER)
    assert caught.value.reason == "POLICY_REFUSED"
    assert "restricted_never_leaves" in str(caught.value.metadata)
    assert world.remote.items == []
    refused = world.audit.log[-1].record
    assert world.audit.kinds()[-1] == "REFUSED"
    assert refused.replay_of == first.decision_id


@pytest.mark.parametrize(
    "facts",
    [
        {"data_class": context_pb2.DATA_CLASS_RESTRICTED},
        {"residency": "us"},
    ],
)
async def test_what_policy_read_then_counts_for_the_replay(facts) -> None:
    """The data class and the residency of the request are recorded, and hold for its replays."""
    world = ReplayWorld()
    first = await world.decide(**facts)
    with pytest.raises(PermissionDeniedError):
        await world.replay(first.decision_id, path=OTHER)
    assert world.remote.items == []


async def test_the_features_data_class_counts_for_the_replay() -> None:
    """Features that were tagged stricter than their task stay so, though they are not read again."""
    world = ReplayWorld()
    world.features.data_class = context_pb2.DATA_CLASS_RESTRICTED
    first = await world.decide()
    world.features.data_class = context_pb2.DATA_CLASS_UNSPECIFIED
    with pytest.raises(PermissionDeniedError):
        await world.replay(first.decision_id, path=OTHER)
    assert world.remote.items == []


async def test_a_replay_says_that_the_version_that_answered_serves_no_more() -> None:
    """As recorded it is refused, with both versions in the text; on the path it is the new one."""
    world = ReplayWorld()
    serving = "1"

    async def describe() -> list[inference_pb2.ModelDescription]:
        ready = inference_pb2.MODEL_STATE_READY
        return [
            inference_pb2.ModelDescription(
                name="diabetes_small", version=version, state=ready, serving=version == serving
            )
            for version in ("1", "2")
        ]

    world.local.describe = describe  # type: ignore[method-assign]
    first = await world.decide()
    assert first.answered_by.version == "1"
    serving = "2"
    with pytest.raises(FailedPreconditionError) as caught:
        await world.replay(first.decision_id)
    assert caught.value.metadata["diabetes_small"] == "recorded_version"
    assert "version 1 answered, and version 2" in caught.value.message
    found = await world.replay(first.decision_id, path=router_pb2.REPLAY_PATH_LOCAL)
    assert (found.recorded_by.version, found.replayed_by.version) == ("1", "2")


async def test_a_replay_that_nobody_answers_fails_and_says_so() -> None:
    """No other path steps in, and the log has a FAILED of the replay."""
    world = ReplayWorld()
    first = await world.decide()
    world.local.behave = lambda item: failure(item, UnavailableError("TRITON_UNAVAILABLE", "x"))
    with pytest.raises(ServiceError):
        await world.replay(first.decision_id)
    assert world.audit.kinds()[-2:] == ["INTENT", "FAILED"]
    assert world.audit.log[-1].record.replay_of == first.decision_id
    assert world.remote.items == []


async def test_what_can_not_be_replayed_says_why() -> None:
    """Unknown, without an outcome, a replay itself, without a payload: each has its own reason."""
    world = ReplayWorld()
    with pytest.raises(NotFoundError):
        await world.replay("nothing")
    with pytest.raises(PermissionDeniedError):
        await world.pipeline.decide(ask("tumour_triage", purpose="marketing"), world.call())
    refused = world.audit.log[0].record.decision_id
    first = await world.decide()
    own = await world.replay(first.decision_id)
    for decision, reason in ((refused, "NO_OUTCOME"), (own.decision_id, "REPLAY_OF_REPLAY")):
        with pytest.raises(FailedPreconditionError) as caught:
            await world.replay(decision)
        assert caught.value.reason == reason
    outcome = world.audit.log[2]
    assert outcome.record.decision_id == first.decision_id
    outcome.ClearField("payload")
    with pytest.raises(FailedPreconditionError) as caught:
        await world.replay(first.decision_id)
    assert caught.value.reason == "PAYLOAD_GONE"


async def test_an_input_that_is_not_what_its_digest_says_is_not_replayed() -> None:
    """A changed payload never reaches a model."""
    world = ReplayWorld()
    first = await world.decide()
    payload = world.audit.log[1].payload
    at = payload.model_input.index(np.float32(1.0).tobytes())
    changed = payload.model_input[:at] + np.float32(2.0).tobytes() + payload.model_input[at + 4 :]
    payload.model_input = changed
    with pytest.raises(DataLossError) as caught:
        await world.replay(first.decision_id)
    assert caught.value.reason == "INPUT_DIGEST_MISMATCH"
    assert len(world.local.items) == 1


async def test_a_streamed_decision_is_replayed_as_a_whole() -> None:
    """A streaming task's candidate is asked in chunks again, and the whole texts are compared."""
    world = ReplayWorld()
    world.local.script = ["Hel", "lo", inference_pb2.InferResult()]
    await world.board.refresh()
    request = router_pb2.InferRequest(task="note_summary")
    request.entity["note_id"].string_value = "n1"
    request.fields["note"].string_value = "One. Two."
    messages = [m async for m in world.streams.decide(request, world.call())]
    decision = messages[-1].final.decision_id
    world.local.script = ["Hello", inference_pb2.InferResult()]
    assert (await world.replay(decision)).agrees
    world.local.script = ["Hell", inference_pb2.InferResult()]
    assert not (await world.replay(decision)).agrees
