"""The router's grants: verified, fitted to the item, and used once.

Remote only detects and refuses; it changes nothing in what it was given.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from services.chassis.clock import Clock
from services.chassis.errors import PermissionDeniedError, ResourceExhaustedError
from services.remote.catalog import Model, Provider
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import grant_pb2, inference_pb2

DOMAIN = b"twinpath.grant.v1\x00"
_DATA_CLASSES = frozenset(context_pb2.DataClass.values()) - {context_pb2.DATA_CLASS_UNSPECIFIED}


def key_id(key: Ed25519PublicKey) -> str:
    """Return a key's id: the first 8 bytes of the SHA-256 of the raw key, in hex."""
    return hashlib.sha256(key.public_bytes_raw()).digest()[:8].hex()


def refused(reason: str, message: str, **metadata: str) -> PermissionDeniedError:
    """Return the refusal of an item. `metadata` holds names of fields, never values."""
    return PermissionDeniedError(reason, message, metadata=metadata)


class GrantVerifier:
    """Tells whether a grant is the router's own and still good.

    Args:
        keys: The router's public keys.
        clock: Its wall clock is compared with the expiry.
        lifetime_s: A grant that expires later than this from now is refused, so that the memory
            of used grants can be bounded.
        leeway_s: For how long after its expiry a grant still serves: a grant lives exactly as
            long as its attempt, which may be shorter than two machines' clocks are apart.
    """

    def __init__(
        self,
        keys: Iterable[Ed25519PublicKey],
        clock: Clock,
        lifetime_s: float = 3660.0,
        leeway_s: float = 0.0,
    ) -> None:
        # libsodium's check takes half as long as OpenSSL's, and is the dearest part of a grant.
        self._keys = {key_id(key): VerifyKey(key.public_bytes_raw()) for key in keys}
        self._clock = clock
        self._lifetime_us = int(lifetime_s * 1e6)
        self._leeway_us = int(leeway_s * 1e6)

    def verify(self, item: inference_pb2.InferItem) -> grant_pb2.GrantClaims:
        """Return the claims of an item's grant, once it is shown to be the router's.

        Raises:
            PermissionDeniedError: GRANT_MISSING, GRANT_INVALID or GRANT_EXPIRED.
        """
        if not item.HasField("grant") or not item.grant.claims:
            raise refused("GRANT_MISSING", "the item has no grant; nothing leaves without one")
        grant = item.grant
        key = self._keys.get(grant.key_id)
        if key is None:
            raise refused("GRANT_INVALID", "the grant is signed by a key we don't know")
        try:
            key.verify(DOMAIN + grant.claims, grant.signature)
            claims = grant_pb2.GrantClaims.FromString(grant.claims)
        except CryptoError:
            raise refused("GRANT_INVALID", "the grant's signature does not verify") from None
        except DecodeError:
            raise refused("GRANT_INVALID", "the grant's claims can't be read") from None
        left = claims.expire_time_unix_us - self._clock.unix_us()
        if left <= -self._leeway_us:
            raise refused("GRANT_EXPIRED", "the grant has expired")
        if left > self._lifetime_us:
            raise refused("GRANT_INVALID", "the grant is valid for longer than we accept")
        return claims


def check_fit(
    claims: grant_pb2.GrantClaims,
    item: inference_pb2.InferItem,
    digest: bytes,
    provider: Provider,
    model: Model,
) -> None:
    """Check the claims against the item, the provider and the model.

    Candidate and policy version must be there, and are compared with nothing: an item names no
    candidate but what it stands for, and of two policy sets both are good while a catalog goes
    round (see grant.proto). The attempt's span has them.

    Args:
        claims: Verified claims.
        item: The item that they came with.
        digest: The digest as recomputed from the item's tensors.
        provider: The vendor that the item names.
        model: The model that the item names.

    Raises:
        PermissionDeniedError: GRANT_MISMATCH with the field's name, DATA_CLASS_TOO_HIGH,
            REGION_MISMATCH or CONSENT_MISSING.
    """
    fits = {
        "grant_id": bool(claims.grant_id),
        "decision_id": bool(claims.decision_id) and claims.decision_id == item.decision_id,
        "provider": claims.provider == item.provider,
        "candidate": bool(claims.candidate),
        "model": claims.model == model.name,
        # No version in either: the one that serves now, which the item asked for, too.
        "version": claims.version == item.version,
        "input_digest": claims.input_digest == digest,
        "policy_version": bool(claims.policy_version),
        # An unknown class could be any class.
        "data_class": claims.data_class in _DATA_CLASSES,
    }
    for field, fit in fits.items():
        if not fit:
            raise refused("GRANT_MISMATCH", f"the grant's {field} does not fit", field=field)
    if claims.data_class > provider.ceiling:
        raise refused(
            "DATA_CLASS_TOO_HIGH",
            f"vendor {provider.name} may not get data of this class",
            provider=provider.name,
        )
    if claims.region and claims.region != provider.region:
        raise refused(
            "REGION_MISMATCH",
            f"vendor {provider.name} is in another region than the policy admitted",
            provider=provider.name,
        )
    missing = provider.consents.difference(claims.consents)
    if missing:
        raise refused(
            "CONSENT_MISSING",
            f"vendor {provider.name} may get this only with consent: {', '.join(sorted(missing))}",
            provider=provider.name,
            consents=",".join(sorted(missing)),
        )


def used_already() -> PermissionDeniedError:
    """Return the refusal of a grant's second use."""
    return refused("GRANT_USED", "the grant has been used already")


class GrantUse(NamedTuple):
    """What other replicas have to know about a grant's use.

    Attributes:
        id: The grant's.
        remember_s: Seconds after which it can't serve any more.
    """

    id: str
    remember_s: float


class UsedGrants:
    """Remembers used grants until they expire; each serves once.

    The memory is this process's: it does not outlive a restart, and replicas don't share it. What
    holds across them is the state store, where there is one (see limits.py), and the expiry.

    Args:
        clock: Its wall clock is compared with the expiries.
        limit: Grants remembered at most. When full of live ones, further grants are refused:
            forgetting one would let it serve twice.
        leeway_s: As the verifier's: for so long after its expiry a grant is remembered.
    """

    def __init__(self, clock: Clock, limit: int, leeway_s: float = 0.0) -> None:
        self._clock = clock
        self._leeway_us = int(leeway_s * 1e6)
        self._limit = limit
        self._used: set[str] = set()
        self._by_expiry: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._used)

    def use(self, claims: grant_pb2.GrantClaims) -> GrantUse:
        """Use a grant up; return what other replicas have to know.

        Raises:
            PermissionDeniedError: GRANT_USED.
            ResourceExhaustedError: GRANT_MEMORY_FULL.
        """
        now = self._clock.unix_us()
        while self._by_expiry and self._by_expiry[0][0] <= now:
            self._used.discard(heapq.heappop(self._by_expiry)[1])
        if claims.grant_id in self._used:
            raise used_already()
        if len(self._used) >= self._limit:
            raise ResourceExhaustedError(
                "GRANT_MEMORY_FULL", "too many live grants to tell a second use", retry_after=1.0
            )
        self._used.add(claims.grant_id)
        until = claims.expire_time_unix_us + self._leeway_us
        heapq.heappush(self._by_expiry, (until, claims.grant_id))
        return GrantUse(claims.grant_id, max(0, until - now) / 1e6)

    def release(self, claims: grant_pb2.GrantClaims) -> None:
        """Take a use back: nothing was sent for it, and nothing will be."""
        self._used.discard(claims.grant_id)
