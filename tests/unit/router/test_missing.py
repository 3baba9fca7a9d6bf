"""While the feature store is away the task's rule holds, and the decision stays in the building."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services.chassis.errors import InternalError, ServiceError, UnavailableError
from services.chassis.files import FileError
from services.router.catalog import load_catalog
from tests.unit.router.ports import CATALOG, World, failure
from twinpath.common.v1 import context_pb2, decision_pb2

AWAY = UnavailableError("FEATURE_STORE_UNAVAILABLE", "the online feature store does not answer")
TASK = "diabetes_progression"


def deciding(world: World) -> None:
    """Let the task decide on defaults while the store is away."""
    task = world.catalog.tasks[TASK]
    sources = [source for spec in task.inputs for source in spec.sources]
    rule = task.missing_features.model_copy(
        update={"store_away": "default", "defaults": dict.fromkeys(sources, 2.5)}
    )
    world.catalog.tasks[TASK] = task.model_copy(update={"missing_features": rule})


async def test_a_task_refuses_unless_it_says_otherwise() -> None:
    """The outage is passed on, no model is asked."""
    world = World()
    world.features.error = AWAY
    with pytest.raises(UnavailableError) as caught:
        await world.decide()
    assert caught.value.reason == "FEATURE_STORE_UNAVAILABLE"
    assert world.local.items == world.remote.items == []


async def test_with_the_rule_every_feature_is_its_default_and_the_record_says_so() -> None:
    """The local path answers; each default stands in the reply and in the record."""
    world = World()
    deciding(world)
    world.features.error = AWAY
    reply = await world.decide()
    assert reply.answered_by.path == context_pb2.PATH_LOCAL
    record = world.audit.log[-1].record
    for handling in (reply.feature_handling, record.feature_handling):
        assert len(handling) == 13
        assert {h.action for h in handling} == {decision_pb2.FEATURE_ACTION_DEFAULTED}
    assert record.data_class == context_pb2.DATA_CLASS_RESTRICTED


async def test_what_was_not_read_counts_as_restricted() -> None:
    """Whom it is about stays in the building, also when the local path is down."""
    world = World()
    deciding(world)
    world.features.error = AWAY
    world.local.behave = lambda item: failure(item, UnavailableError("TRITON_UNAVAILABLE", "down"))
    with pytest.raises(ServiceError):
        await world.decide()
    assert world.remote.items == []


async def test_a_fault_of_the_feature_service_is_no_outage() -> None:
    """An error that is not about being away is passed on, rule or no rule."""
    world = World()
    deciding(world)
    world.features.error = InternalError("BROKEN", "a fault")
    with pytest.raises(InternalError):
        await world.decide()


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("  store_away: default\n", "needs defaults of diabetes_baseline__age"),
        ("  store_away: sometimes\n", "store_away"),
    ],
)
def test_a_rule_that_can_not_hold_is_refused_at_load(tmp_path: Path, rule: str, says: str) -> None:
    """With the file and what is lacking."""
    folder = Path(shutil.copytree(CATALOG, tmp_path / "catalog"))
    path = folder / "tasks" / f"{TASK}.yaml"
    text = path.read_text("utf-8")
    path.write_text(text.replace("missing_features:\n", f"missing_features:\n{rule}"), "utf-8")
    with pytest.raises(FileError, match=says):
        load_catalog(folder)
