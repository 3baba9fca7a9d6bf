"""Signs the permission for one attempt on a vendor (see inference/v1/grant.proto)."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.clock import Clock
from services.router.decision import Decision
from services.router.plan import Candidate
from twinpath.inference.v1 import grant_pb2

_DOMAIN = b"twinpath.grant.v1\x00"


class GrantSigner:
    """Holds the router's Ed25519 key."""

    def __init__(self, key: Ed25519PrivateKey, clock: Clock) -> None:
        self._key = key
        self._clock = clock
        public = key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        self.key_id = hashlib.sha256(public).hexdigest()[:16]

    @classmethod
    def from_file(cls, path: Path, clock: Clock) -> GrantSigner:
        """Read a PEM private key.

        Raises:
            ValueError: the file holds no Ed25519 private key.
        """
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path}: is no Ed25519 private key")
        return cls(key, clock)

    def sign(self, decision: Decision, candidate: Candidate, lifetime_s: float) -> grant_pb2.Grant:
        """Return the grant for one attempt; it ends with the attempt's time."""
        assert decision.assembled is not None
        assert decision.plan is not None
        claims = grant_pb2.GrantClaims(
            grant_id=secrets.token_hex(16),
            decision_id=decision.id,
            candidate=candidate.id,
            provider=candidate.provider,
            input_digest=decision.assembled.model_input.digest,
            data_class=decision.data_class,  # type: ignore[arg-type]
            policy_version=decision.plan.policy_version,
            expire_time_unix_us=self._clock.unix_us() + int(lifetime_s * 1e6),
            region=candidate.region,
            task=decision.task.name,
            model=candidate.model,
            version=candidate.version,
            consents=sorted(set(decision.request.consents)),
        ).SerializeToString()
        signature = self._key.sign(_DOMAIN + claims)
        return grant_pb2.Grant(claims=claims, signature=signature, key_id=self.key_id)
