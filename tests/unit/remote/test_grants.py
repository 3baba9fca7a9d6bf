"""Nothing leaves without a grant that fits, each time for one reason at a time."""

from __future__ import annotations

import secrets
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.clock import SystemClock
from services.chassis.errors import PermissionDeniedError, ResourceExhaustedError, from_status
from services.chassis.identity import read_public_keys
from services.remote.grants import GrantVerifier, UsedGrants
from tests.support import sign_grant
from tests.unit.remote.support import Remote, claims_for, features, make_item, start_remote
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import grant_pb2

HOUR_US = 3_600_000_000


async def refused(remote: Remote, item) -> tuple[str, dict[str, str]]:
    """The reason and metadata of an item that must be refused, with nothing sent."""
    (result,) = await remote.infer(item)
    error = from_status(result.status)
    assert isinstance(error, PermissionDeniedError), result.status
    assert not result.metering.sent
    assert remote.posts == 0
    return error.reason, error.metadata


async def test_no_grant(remote: Remote) -> None:
    """An item without a grant is refused."""
    item = make_item(remote.keys, grant=False)
    assert await refused(remote, item) == ("GRANT_MISSING", {})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"decision_id": "d-2"}, "decision_id"),
        ({"decision_id": ""}, "decision_id"),
        ({"provider": "other"}, "provider"),
        ({"model": "echo_types"}, "model"),
        ({"model": ""}, "model"),
        ({"version": "2"}, "version"),
        ({"version": ""}, "version"),
        ({"candidate": ""}, "candidate"),
        ({"input_digest": bytes(32)}, "input_digest"),
        ({"input_digest": b""}, "input_digest"),
        ({"policy_version": ""}, "policy_version"),
        ({"grant_id": ""}, "grant_id"),
        ({"data_class": context_pb2.DATA_CLASS_UNSPECIFIED}, "data_class"),
        ({"data_class": 99}, "data_class"),
    ],
)
async def test_a_claim_that_does_not_fit_is_named(remote: Remote, changes, field) -> None:
    """GRANT_MISMATCH with the field's name and no value."""
    item = make_item(remote.keys, claims=changes)
    assert await refused(remote, item) == ("GRANT_MISMATCH", {"field": field})


async def test_a_grant_for_another_input_does_not_serve_this_one(remote: Remote) -> None:
    """The digest is recomputed from the tensors; a right digest beside other tensors is found."""
    item = make_item(remote.keys, features(1.0))
    other = make_item(remote.keys, features(2.0))
    item.grant.CopyFrom(other.grant)
    assert await refused(remote, item) == ("GRANT_MISMATCH", {"field": "input_digest"})


@pytest.mark.parametrize(
    "data_class", [context_pb2.DATA_CLASS_CONFIDENTIAL, context_pb2.DATA_CLASS_RESTRICTED]
)
async def test_data_above_the_vendors_ceiling_never_leaves(remote: Remote, data_class) -> None:
    """Even the router's own grant can't send it."""
    item = make_item(remote.keys, claims={"data_class": data_class})
    assert (await refused(remote, item))[0] == "DATA_CLASS_TOO_HIGH"


async def test_another_region_than_the_policy_admitted_is_refused(remote: Remote) -> None:
    """No region in the grant means that the policy says nothing about it."""
    item = make_item(remote.keys, claims={"region": "us"})
    assert (await refused(remote, item))[0] == "REGION_MISMATCH"
    assert (await remote.one(claims={"region": ""})).status.code == 0


async def test_a_vendor_that_needs_consent_gets_nothing_without_it(keys, tmp_path) -> None:
    """What its file asks for must stand in the grant, all of it; more than that does no harm."""
    extra = "consents: [vendor_processing, abroad]"
    async with start_remote(keys, tmp_path, extra=extra) as remote:
        for given in ([], ["abroad"]):
            item = make_item(keys, claims={"consents": given})
            reason, metadata = await refused(remote, item)
            assert reason == "CONSENT_MISSING"
            missing = {"abroad", "vendor_processing"}.difference(given)
            assert set(metadata["consents"].split(",")) == missing
        consents = ["abroad", "other", "vendor_processing"]
        assert (await remote.one(claims={"consents": consents})).status.code == 0


@pytest.mark.parametrize(
    ("offset_us", "reason"), [(-1_500_000, "GRANT_EXPIRED"), (2 * HOUR_US, "GRANT_INVALID")]
)
async def test_a_grant_has_its_time(remote: Remote, offset_us, reason) -> None:
    """Expired, and valid for so long that its use could not be remembered."""
    expiry = time.time_ns() // 1000 + offset_us
    item = make_item(remote.keys, claims={"expire_time_unix_us": expiry})
    assert (await refused(remote, item))[0] == reason


async def test_a_signature_of_anybody_else_is_refused(remote: Remote) -> None:
    """Another key, also under the router's key id, and one flipped bit."""
    other = Ed25519PrivateKey.generate()
    item = make_item(remote.keys)
    right = grant_pb2.Grant.FromString(item.grant.SerializeToString())
    item.grant.CopyFrom(sign_grant(other, claims_for(item)))
    assert (await refused(remote, item))[0] == "GRANT_INVALID"
    item.grant.key_id = right.key_id
    assert (await refused(remote, item))[0] == "GRANT_INVALID"
    item.grant.CopyFrom(right)
    item.grant.signature = bytes([right.signature[0] ^ 1]) + right.signature[1:]
    assert (await refused(remote, item))[0] == "GRANT_INVALID"
    item.grant.CopyFrom(right)
    item.grant.claims = right.claims + b"\x00"
    assert (await refused(remote, item))[0] == "GRANT_INVALID"


async def test_a_signature_of_another_length_is_refused(keys) -> None:
    """Also where the contract's rule on its length was not asked: cut, empty, too long."""
    verifier = GrantVerifier(read_public_keys(keys.grant_keys), SystemClock())
    item = make_item(keys)
    right = item.grant.signature
    verifier.verify(item)
    for wrong in (right[:-1], b"", right + b"\x00"):
        item.grant.signature = wrong
        with pytest.raises(PermissionDeniedError) as caught:
            verifier.verify(item)
        assert caught.value.reason == "GRANT_INVALID"


async def test_signed_nonsense_is_refused(remote: Remote) -> None:
    """The router's signature over bytes that are no claims."""
    item = make_item(remote.keys)
    item.grant.claims = b"\xff\xff"
    item.grant.signature = remote.keys.grants.sign(b"twinpath.grant.v1\x00\xff\xff")
    assert (await refused(remote, item))[0] == "GRANT_INVALID"


async def test_a_grant_serves_once_also_when_two_uses_arrive_at_once(remote: Remote) -> None:
    """One of two items in one call is answered, and a later use is refused."""
    first, second = make_item(remote.keys), make_item(remote.keys)
    second.grant.CopyFrom(first.grant)
    results = await remote.infer(first, second)
    assert sorted(result.status.code for result in results) == [0, 7]
    assert remote.posts == 1
    (again,) = await remote.infer(first)
    assert from_status(again.status).reason == "GRANT_USED"
    assert remote.posts == 1


async def test_a_grant_whose_item_was_refused_is_not_used_up(remote: Remote) -> None:
    """Only an attempt uses a grant."""
    item = make_item(remote.keys)
    grant = item.grant
    wrong = make_item(remote.keys)
    wrong.grant.CopyFrom(grant)
    wrong.decision_id = "d-2"
    assert (await refused(remote, wrong))[0] == "GRANT_MISMATCH"
    assert (await remote.infer(item))[0].status.code == 0


async def test_a_grant_that_ends_with_its_attempt_serves_in_time_and_once(remote: Remote) -> None:
    """Clocks of two machines may be further apart than an attempt is long: a second of leeway."""
    expiry = time.time_ns() // 1000 - 300_000
    item = make_item(remote.keys, claims={"expire_time_unix_us": expiry})
    assert (await remote.infer(item))[0].status.code == 0
    (again,) = await remote.infer(item)
    assert from_status(again.status).reason == "GRANT_USED"


class HeldClock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_us = 1_000_000

    def unix_us(self) -> int:
        """The held time."""
        return self.now_us

    def monotonic(self) -> float:
        """The held time, in seconds."""
        return self.now_us / 1e6


def used_claims(expiry_us: int, grant_id: str | None = None) -> grant_pb2.GrantClaims:
    """Claims with an id and an expiry only."""
    return grant_pb2.GrantClaims(
        grant_id=grant_id or secrets.token_hex(8), expire_time_unix_us=expiry_us
    )


def test_used_grants_are_forgotten_when_they_expire_and_not_before() -> None:
    """The memory does not grow with time."""
    clock = HeldClock()
    used = UsedGrants(clock, limit=100)
    for second in range(2, 1000):
        used.use(used_claims(clock.now_us + 10_000_000, f"g{second}"))
        clock.now_us += 1_000_000
    assert len(used) <= 11
    with pytest.raises(PermissionDeniedError):
        used.use(used_claims(clock.now_us + 1, "g999"))


def test_a_full_memory_refuses_rather_than_forgets() -> None:
    """A grant that could have been used before is not served."""
    clock = HeldClock()
    used = UsedGrants(clock, limit=2)
    used.use(used_claims(2_000_000, "a"))
    used.use(used_claims(2_000_000, "b"))
    with pytest.raises(ResourceExhaustedError, match="too many live grants"):
        used.use(used_claims(2_000_000, "c"))
    with pytest.raises(PermissionDeniedError):
        used.use(used_claims(2_000_000, "a"))
    clock.now_us = 2_000_000
    used.use(used_claims(3_000_000, "c"))


def test_within_the_leeway_a_used_grant_is_remembered() -> None:
    """What the verifier still takes must not be forgotten."""
    clock = HeldClock()
    used = UsedGrants(clock, limit=10, leeway_s=1.0)
    used.use(used_claims(1_500_000, "a"))
    clock.now_us = 2_499_999
    with pytest.raises(PermissionDeniedError):
        used.use(used_claims(1_500_000, "a"))
    clock.now_us = 2_500_000
    used.use(used_claims(9_000_000, "b"))
    assert len(used) == 1
