"""The data class that counts: what a caller says can only make it stricter."""

from __future__ import annotations

import pytest

from services.chassis.errors import ServiceError, UnavailableError
from tests.unit.router.ports import World, failure
from twinpath.common.v1 import context_pb2

LOOSER = [
    context_pb2.DATA_CLASS_PUBLIC,
    context_pb2.DATA_CLASS_INTERNAL,
    context_pb2.DATA_CLASS_CONFIDENTIAL,
]


@pytest.mark.parametrize("data_class", LOOSER)
async def test_a_request_cannot_loosen_the_tasks_data_class(data_class: int) -> None:
    """A restricted task stays restricted, in the plan and in what is sent, whatever is claimed."""
    world = World()
    world.features.data_class = context_pb2.DATA_CLASS_UNSPECIFIED
    reply = await world.decide("tumour_triage", data_class=data_class, include_plan=True)
    assert reply.plan.data_class == context_pb2.DATA_CLASS_RESTRICTED
    world.local.behave = lambda item: failure(item, UnavailableError("TRITON_UNAVAILABLE", "away"))
    with pytest.raises(ServiceError):
        await world.decide("tumour_triage", data_class=data_class)
    assert world.remote.items == []


@pytest.mark.parametrize("data_class", LOOSER)
async def test_a_request_cannot_loosen_the_features_data_class(data_class: int) -> None:
    """Restricted features make a hybrid task local, whatever is claimed."""
    world = World()
    world.features.data_class = context_pb2.DATA_CLASS_RESTRICTED
    reply = await world.decide(data_class=data_class, include_plan=True)
    assert reply.plan.data_class == context_pb2.DATA_CLASS_RESTRICTED
    assert reply.answered_by.path == context_pb2.PATH_LOCAL
    assert world.remote.items == []
