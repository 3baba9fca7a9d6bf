"""The router's grants, read by the contract's comments and by the service that they are for."""

from __future__ import annotations

from services.remote.grants import GrantVerifier
from tests.support import GRANT_DOMAIN, key_id
from tests.unit.router.ports import World
from twinpath.common.v1 import context_pb2
from twinpath.inference import digest
from twinpath.inference.v1 import grant_pb2


async def test_a_grant_is_signed_as_the_contract_says_and_remote_takes_it() -> None:
    """Signer and verifier are two services' code; the proto's comments are what they share."""
    world = World()
    await world.decide(only_path=context_pb2.PATH_REMOTE)
    (item,) = world.remote.items
    public = world.key.public_key()
    assert item.grant.key_id == key_id(public)
    public.verify(item.grant.signature, GRANT_DOMAIN + item.grant.claims)
    claims = GrantVerifier([public], world.clock, lifetime_s=1e10).verify(item)
    assert claims == grant_pb2.GrantClaims.FromString(item.grant.claims)
    assert claims.input_digest == digest.digest(item.input.tensors)
    assert claims.decision_id == item.decision_id


async def test_the_consents_of_the_request_are_in_the_grant() -> None:
    """Each once, in order: the vendor's own rules are checked against what was signed."""
    world = World()
    await world.decide(only_path=context_pb2.PATH_REMOTE, consents=["b", "a", "b"])
    (item,) = world.remote.items
    assert grant_pb2.GrantClaims.FromString(item.grant.claims).consents == ["a", "b"]


async def test_each_attempt_has_a_grant_of_its_own() -> None:
    """A grant serves once, so no two attempts may share one."""
    world = World()
    for _ in range(3):
        await world.decide(only_path=context_pb2.PATH_REMOTE)
    ids = [grant_pb2.GrantClaims.FromString(i.grant.claims).grant_id for i in world.remote.items]
    assert len(set(ids)) == len(ids) == 3


async def test_the_local_path_gets_no_grant() -> None:
    """Nothing that could serve elsewhere is handed out without need."""
    world = World()
    await world.decide(only_path=context_pb2.PATH_LOCAL)
    assert not world.local.items[0].HasField("grant")
