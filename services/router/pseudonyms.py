"""Keyed pseudonyms: what a model gets in place of an entity's key.

The same key of the same entity gives the same pseudonym for one tenant and task, at every router
that has the secret; across tenants or tasks nothing can be joined, and without the secret nothing
can be guessed and checked.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from services.chassis.errors import FailedPreconditionError

_DOMAIN = b"twinpath.pseudonym.v1"
_KEY_BYTES = 32
_DIGEST_BYTES = 10  # 80 bits: 2**40 entities of one task before two are likely to share one


class Pseudonyms:
    """Makes pseudonyms."""

    def __init__(self, key: bytes) -> None:
        """Raises ValueError unless the key has 32 bytes."""
        if len(key) != _KEY_BYTES:
            raise ValueError(f"the pseudonyms' key must have {_KEY_BYTES} bytes")
        self._key = key

    def of(self, tenant: str, task: str, name: str, value: Any) -> str:
        """Return the pseudonym of one key's value, such as `[PATIENT_ID_k3x…]`."""
        parts = (tenant, task, name, f"{type(value).__name__}:{value}")
        coded = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (p.encode() for p in parts))
        digest = hmac.digest(self._key, _DOMAIN + coded, "sha256")[:_DIGEST_BYTES]
        return f"[{name.upper()}_{base64.b32encode(digest).decode().lower()}]"


def pseudonyms_for(
    made_by: Pseudonyms | None,
    tenant: str,
    task: str,
    names: Iterable[str],
    entity: Mapping[str, Any],
) -> dict[str, str]:
    """Return the pseudonym of each named key of an entity.

    Raises:
        FailedPreconditionError: PSEUDONYM_KEY_MISSING: this router has no secret to make them by.
    """
    if made_by is None:
        raise FailedPreconditionError(
            "PSEUDONYM_KEY_MISSING",
            f"the task {task} shows models a pseudonym of its entity, and this router has no key "
            "for them (TWINPATH_ROUTER_PSEUDONYM_KEY)",
            metadata={"task": task},
        )
    return {name: made_by.of(tenant, task, name, entity[name]) for name in names}
