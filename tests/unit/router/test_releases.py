"""A release's arms: sticky for an entity, in the record, the same in a replay, never a way around."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import PermissionDeniedError, ServiceError, UnavailableError
from services.chassis.files import FileError
from services.router.catalog import load_catalog
from services.router.releases import ArmSpec, ReleaseSpec, arm_of, split_key
from tests.unit.router.ports import CATALOG, World, failure
from tests.unit.router.test_replay import ReplayWorld
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.router.v1 import router_pb2

LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE
KEY = split_key(b"a secret of 16 b")
ARMS: dict[str, Any] = {
    "control": {"weight": 1, "candidates": ["diabetes_small"]},
    "trial": {"weight": 1, "candidates": ["diabetes_large", "diabetes_small"]},
}


class Task:
    """What a release needs of a task."""

    name = "t"

    def __init__(self, **arms: tuple[float, tuple[str, ...]]) -> None:
        made = {n: ArmSpec(weight=w, candidates=c) for n, (w, c) in arms.items()}
        self.release = ReleaseSpec(id="r", arms=made)


def released(world: World, arms: dict[str, Any], task: str = "diabetes_progression") -> None:
    """Split a task's traffic from now on."""
    release = ReleaseSpec.model_validate({"id": "r1", "arms": arms})
    world.catalog.tasks[task] = world.catalog.tasks[task].model_copy(update={"release": release})


def test_an_entity_keeps_its_arm_whatever_the_type_or_order_of_its_keys() -> None:
    """The arm is a function of release, key and entity alone."""
    task = Task(a=(1, ("x",)), b=(1, ("y",)))
    for number in range(200):
        first = arm_of(task, KEY, {"k": number, "m": "z"})
        assert first == arm_of(task, KEY, {"m": "z", "k": str(number)})


def test_shares_follow_the_weights_and_the_key_deals() -> None:
    """90/10 is 90/10 within statistics; another key deals other entities."""
    task = Task(a=(90, ("x",)), b=(10, ("y",)))

    def arms(key: bytes) -> list[str]:
        found = [arm_of(task, key, {"k": n}) for n in range(4000)]
        return [arm.name for arm in found if arm is not None]

    dealt = arms(KEY)
    assert 0.08 < Counter(dealt)["b"] / 4000 < 0.12
    assert dealt != arms(split_key(b"another secret16"))


def test_a_key_that_could_be_guessed_is_refused() -> None:
    """Who can guess it can choose an entity id for an arm."""
    with pytest.raises(ValueError, match="16 bytes"):
        split_key(b"short")


def test_keys_of_an_entity_are_not_run_together() -> None:
    """Two entities whose keys join to the same text are not one."""
    task = Task(**{f"arm{n}": (1, ("x",)) for n in range(1000)})
    assert arm_of(task, KEY, {"a": "1", "b": "23"}) != arm_of(task, KEY, {"a": "12", "b": "3"})


async def test_the_arm_decides_who_answers_and_stands_in_plan_and_record() -> None:
    """Only the arm's candidates are tried, in its order; the others are refused by RELEASE."""
    world = World()
    released(world, ARMS)
    seen = set()
    for patient in range(1, 40):
        reply = await world.decide(patient=patient, include_plan=True)
        record = world.audit.log[-1].record
        assert record.arm == record.plan.arm == reply.plan.arm
        first = ARMS[record.arm]["candidates"][0]
        assert reply.answered_by.id == first
        left_out = {e.candidate.id for e in reply.plan.entries if not e.rank}
        assert left_out == {"diabetes_small", "diabetes_large"} - set(
            ARMS[record.arm]["candidates"]
        )
        kinds = {r.kind for e in reply.plan.entries for r in e.refusals}
        assert kinds <= {decision_pb2.REFUSAL_KIND_RELEASE}
        seen.add(record.arm)
    assert seen == {"control", "trial"}


async def test_an_arm_is_no_way_around_and_nobody_leaves_it() -> None:
    """Where the arm's only candidate is down, nobody else is asked."""
    world = World()
    released(world, {"only": {"weight": 1, "candidates": ["diabetes_small"]}})
    down = UnavailableError("TRITON_UNAVAILABLE", "down")
    world.local.behave = lambda item: failure(item, down)
    with pytest.raises(UnavailableError):
        await world.decide()
    assert world.remote.items == []


async def test_an_arm_that_policy_excludes_is_refused_for_good() -> None:
    """Restricted data in an arm of vendors only: PERMISSION_DENIED, and no vendor is asked."""
    world = World()
    released(world, {"vendor": {"weight": 1, "candidates": ["diabetes_large"]}})
    with pytest.raises(PermissionDeniedError):
        await world.decide(data_class=context_pb2.DATA_CLASS_RESTRICTED)
    assert world.remote.items == []


async def test_explain_shows_the_arm() -> None:
    """Without asking anybody."""
    world = World()
    released(world, ARMS)
    await world.board.refresh()
    request = router_pb2.InferRequest(task="diabetes_progression")
    request.entity["patient_id"].int64_value = 17
    plan = (await world.pipeline.explain(request, world.call())).plan
    await world.decide(patient=17)
    assert plan.arm == world.audit.log[-1].record.arm


async def test_a_replay_has_the_recorded_arm_also_after_weights_moved() -> None:
    """The decision's own arm counts as long as the release has it."""
    world = ReplayWorld()
    released(world, ARMS)
    reply = await world.decide()
    then = world.audit.log[-1].record.arm
    other = "trial" if then == "control" else "control"
    moved = {then: {**ARMS[then], "weight": 0}, other: ARMS[other]}
    released(world, moved)
    await world.decide()
    assert world.audit.log[-1].record.arm == other
    replayed = await world.replay(reply.decision_id)
    assert replayed.plan.arm == then
    assert replayed.replayed_by == reply.answered_by


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ("{a: {weight: 1, candidates: [nobody]}}", "nobody"),
        ("{a: {weight: 0, candidates: [diabetes_small]}}", "no arm has a weight"),
        ("{a: {weight: -1, candidates: [diabetes_small]}}", "greater than or equal to 0"),
        ("{a: {weight: 1, candidates: [diabetes_small, diabetes_small]}}", "twice"),
        ("{}", "at least 1"),
    ],
)
def test_a_split_that_cannot_be_is_refused_at_load(tmp_path: Path, arms: str, says: str) -> None:
    """With file and reason."""
    folder = Path(shutil.copytree(CATALOG, tmp_path / "catalog"))
    path = folder / "tasks" / "diabetes_progression.yaml"
    path.write_text(path.read_text("utf-8") + f"release: {{id: r, arms: {arms}}}\n", "utf-8")
    with pytest.raises(FileError, match=says) as caught:
        load_catalog(folder)
    assert f"{path}:" in str(caught.value)


async def test_a_release_of_a_restricted_task_reaches_no_vendor() -> None:
    """An arm may name a vendor for a restricted task; policy refuses it all the same."""
    world = World()
    released(
        world,
        {"a": {"weight": 1, "candidates": ["tumour_large", "tumour_small"]}},
        task="tumour_triage",
    )
    reply = await world.decide("tumour_triage")
    assert reply.answered_by.path == LOCAL
    world.local.down = True
    with pytest.raises(ServiceError):
        await world.decide("tumour_triage")
    assert world.remote.items == []
