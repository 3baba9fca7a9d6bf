"""How a task's traffic is split: the arms of its release, and which one an entity has. Pure.

In a task's file:

    release:
      id: large_first           # a new id deals the entities anew
      arms:
        control: {weight: 90, candidates: [small, large]}
        trial: {weight: 10, candidates: [large, small]}

An arm names the candidates that may answer its entities, in the order of preference; the others
get no traffic from it, not even as a fallback. Policy, health and time exclude within an arm as
without one: a split only takes away. Which arm an entity has is fixed by a keyed hash (split.py),
so every router, every retry and every replay gives the same. A canary is a small weight, and a way
back is that weight at zero.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.router import split
from services.router.plan import Arm

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
_DOMAIN = b"twinpath.split.v1"


class ArmSpec(BaseModel):
    """One arm: its share of the entities, and who answers them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(ge=0, allow_inf_nan=False, description="in any unit; 0: no traffic")
    candidates: tuple[Name, ...] = Field(min_length=1, description="in order of preference")


class ReleaseSpec(BaseModel):
    """A task's split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    arms: dict[Name, ArmSpec] = Field(min_length=1)

    @model_validator(mode="after")
    def _somebody_answers(self) -> ReleaseSpec:
        if not any(arm.weight > 0 for arm in self.arms.values()):
            raise ValueError("no arm has a weight above 0")
        for name, arm in self.arms.items():
            if len(set(arm.candidates)) < len(arm.candidates):
                raise ValueError(f"arm {name} names a candidate twice")
        return self

    def unknown(self, candidates: set[str]) -> list[str]:
        """Return the candidates that an arm names and that are none of the task's."""
        return sorted({c for arm in self.arms.values() for c in arm.candidates} - candidates)


class Released(Protocol):
    """What is needed of a task."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    @property
    def release(self) -> ReleaseSpec | None:
        """Its split; None: all candidates take all traffic."""
        ...


def split_key(secret: bytes) -> bytes:
    """Return the key of all splits of a deployment, derived from a secret of it.

    Raises:
        ValueError: the secret is so short that it could be guessed.
    """
    if len(secret) < 16:
        raise ValueError("the split key must have 16 bytes or more")
    return hmac.digest(secret, _DOMAIN, "sha256")


def arm_of(task: Released, key: bytes, entity: Mapping[str, Any], recorded: str = "") -> Arm | None:
    """Return an entity's arm; None: the task has no release.

    Args:
        task: whose release it is.
        key: of `split_key`; other keys deal other arms.
        entity: join keys to plain values, as the request has them.
        recorded: the arm that a replayed decision had; it counts while the release has it.
    """
    release = task.release
    if release is None:
        return None
    name = recorded
    if name not in release.arms:
        weights = {arm: spec.weight for arm, spec in release.arms.items()}
        name = split.choose(key, f"{task.name}/{release.id}", _canonical(entity), weights)
    candidates = release.arms[name].candidates
    return Arm(name, {candidate: place for place, candidate in enumerate(candidates, start=1)})


def _canonical(entity: Mapping[str, Any]) -> bytes:
    """Each part with its length before it, so that no two entities are the same bytes."""
    parts = [text.encode() for name in sorted(entity) for text in (name, str(entity[name]))]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
