"""The response cache: the answer of one candidate to one input, kept for a task that asks for it.

It stands around an admitted candidate and nowhere earlier: only an attempt looks here, and only
admitted entries of a plan are attempted. So a hit can't be the answer of somebody whom policy, a
breaker or an operator excludes now, whatever was allowed when it was stored.

The key names everything that the answer depends on: tenant, task and its contract's version,
candidate and model version, feature service and view versions, and the input's digest, which
holds the generation parameters. Of it the store sees a keyed hash; the value is encrypted, and
bound to its key. A store that is away, or holds nonsense, is a miss.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import DecodeError

from services.router.decision import Decision
from services.router.plan import Candidate
from services.router.singleflight import SingleFlight
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import inference_pb2

log = logging.getLogger(__name__)

_DOMAIN = b"twinpath.cache.v1"
_NONCE_BYTES = 12
_KEY_BYTES = 32


class Store(Protocol):
    """Where values are kept. Never raises: what can't be read is not there."""

    async def get(self, name: str) -> bytes | None:
        """Return a value, None if there is none."""
        ...

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """Keep a value for so long."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where one answer is kept, and for how long."""

    name: str
    ttl_s: float


class ResponseCache:
    """Finds and keeps answers. `flights` joins equal questions that are asked at the same time."""

    def __init__(self, store: Store, key: bytes) -> None:
        """Raises ValueError unless the key has 32 bytes."""
        if len(key) != _KEY_BYTES:
            raise ValueError(f"the cache's key must have {_KEY_BYTES} bytes")
        self._store = store
        self._cipher = AESGCM(hmac.digest(key, _DOMAIN + b" values", "sha256"))
        self._names = hmac.digest(key, _DOMAIN + b" names", "sha256")
        self.flights: SingleFlight[str, inference_pb2.InferResult | None] = SingleFlight()

    def place(self, decision: Decision, candidate: Candidate) -> Place | None:
        """Return where a candidate's answer would be; None: it must not be kept.

        Restricted data is kept only where its task says so, whoever made it restricted.
        """
        wanted = decision.task.cache
        if wanted is None or decision.assembled is None:
            return None
        if decision.data_class >= context_pb2.DATA_CLASS_RESTRICTED and not wanted.restricted:
            return None
        vector = decision.vector
        views = () if vector is None else vector.views
        parts = (
            decision.caller.tenant,
            decision.task.name,
            decision.task.version,
            candidate.id,
            candidate.path,
            candidate.provider,
            candidate.model,
            candidate.version,
            candidate.region,
            "" if vector is None else vector.feature_service,
            "" if vector is None else vector.registry_version,
            *(f"{view}@{version}" for view, version, _ in views),
            decision.assembled.model_input.digest.hex(),
        )
        coded = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (p.encode() for p in parts))
        name = hmac.digest(self._names, coded, "sha256").hex()
        return Place(f"twinpath:answer:{name}", wanted.ttl_s)

    async def get(self, place: Place) -> inference_pb2.InferResult | None:
        """Return the answer that is kept there: outputs and finish reason, nothing else."""
        sealed = await self._store.get(place.name)
        if sealed is None:
            return None
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            plain = self._cipher.decrypt(nonce, body, place.name.encode())
            return inference_pb2.InferResult.FromString(plain)
        except (InvalidTag, DecodeError, ValueError):
            log.warning("a kept answer can't be opened: another key, or it was changed")
            return None

    async def put(self, place: Place, result: inference_pb2.InferResult) -> None:
        """Keep an answer that was accepted."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        body = self._cipher.encrypt(nonce, result.SerializeToString(), place.name.encode())
        await self._store.put(place.name, nonce + body, place.ttl_s)
