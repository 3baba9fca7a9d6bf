"""Quotas: how many requests a minute a caller, the holders of a role, or a tenant may make.

The rules stand in the catalog's `quotas.yaml`; all that fit a caller must have room. The buckets
are in state Redis, shared by all routers; while that is away each router counts for itself. A
refusal is a counter and no record, comes before any work, and says nothing about load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.chassis.call import Identity
from services.chassis.clock import Clock
from services.chassis.errors import ResourceExhaustedError

_MEMORY = 10_000


class QuotaRule(BaseModel):
    """One rule.

    Attributes:
        id: Its name; refusals show it.
        caller: Only this caller; empty: any.
        role: Only callers with this role; empty: any.
        tenant: Only this tenant's callers; empty: any.
        per_minute: Requests a minute, in the long run.
        burst: Requests at once; none: what ten seconds allow, one at least.
        each: Who has a bucket: each caller, each tenant, or all that fit together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
    caller: str = ""
    role: str = ""
    tenant: str = ""
    per_minute: float = Field(gt=0)
    burst: int | None = Field(default=None, ge=1)
    each: Literal["caller", "tenant", "all"] = "caller"

    @property
    def size(self) -> float:
        """Requests at once."""
        return float(self.burst or max(1, round(self.per_minute / 6)))

    def fits(self, identity: Identity) -> bool:
        """Tell whether the rule is about a caller."""
        return (
            self.caller in ("", identity.subject)
            and self.tenant in ("", identity.tenant)
            and (not self.role or self.role in identity.roles)
        )

    def bucket(self, identity: Identity) -> str:
        """Return the name of a caller's bucket; parts carry their length, so none is another."""
        whose = {
            "caller": f"{len(identity.tenant)}:{identity.tenant}{identity.subject}",
            "tenant": identity.tenant,
            "all": "",
        }[self.each]
        return f"twinpath:quota:{self.id}:{self.each}:{whose}"


class QuotaFile(BaseModel):
    """`quotas.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quotas: list[QuotaRule] = Field(default_factory=list)

    @field_validator("quotas")
    @classmethod
    def _unique(cls, value: list[QuotaRule]) -> list[QuotaRule]:
        ids = [rule.id for rule in value]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"quota ids stand twice: {', '.join(twice)}")
        return value


class Buckets(Protocol):
    """Token buckets that all routers share."""

    async def take(self, name: str, per_s: float, size: float) -> float | None:
        """Take a token: 0, or the seconds until there is one; None: the store is away."""
        ...


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


@dataclass(slots=True)
class OwnBuckets:
    """Buckets of this process, for the time in which the shared ones are away."""

    clock: Clock
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def take(self, name: str, per_s: float, size: float) -> float:
        """See Buckets.take; this one is never away."""
        now = self.clock.monotonic()
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= _MEMORY:
                self._buckets.pop(next(iter(self._buckets)))  # the oldest: bounded, whoever asks
            bucket = self._buckets[name] = _Bucket(size, now)
        bucket.tokens = min(size, bucket.tokens + (now - bucket.at) * per_s)
        bucket.at = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / per_s
        bucket.tokens -= 1
        return 0.0


class Quotas:
    """Lets callers pass while they have room."""

    def __init__(self, shared: Buckets, own: OwnBuckets) -> None:
        self._shared = shared
        self._own = own

    async def take(self, rules: tuple[QuotaRule, ...], identity: Identity) -> None:
        """Count one request against every rule that fits; a refused one has cost the rules before.

        Raises:
            ResourceExhaustedError: QUOTA_EXCEEDED, with the rule and when to come back.
        """
        for rule in rules:
            if not rule.fits(identity):
                continue
            name, per_s = rule.bucket(identity), rule.per_minute / 60
            wait = await self._shared.take(name, per_s, rule.size)
            if wait is None:
                wait = self._own.take(name, per_s, rule.size)
            if wait > 0:
                raise ResourceExhaustedError(
                    "QUOTA_EXCEEDED",
                    f"the quota {rule.id} allows {rule.per_minute:g} requests a minute",
                    metadata={"quota": rule.id},
                    retry_after=wait,
                )
