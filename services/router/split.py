"""Sticky split of traffic: which arm of a release an entity belongs to.

Weighted rendezvous hashing (Thaler and Ravishankar 1998; the logarithmic weights of Schindelhauer
and Schomaker 2005): each arm draws a number for the entity from a keyed hash, scaled by its weight,
and the best wins. No table, no state: every router, every restart and every replay gives the same
arm. If one arm's weight changes against the others', entities move to or from that arm only, and
no more of them than the weights demand. The key makes the split unguessable, so that a caller can't
choose an entity id to land in an arm; `purpose` makes the splits of two releases independent.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping


def unit(key: bytes, purpose: str, entity: bytes, arm: str = "") -> float:
    """Return the number in (0, 1), fixed by HMAC-SHA-256, that this entity draws.

    Also serves to sample entities: `unit(...) < share` is true for `share` of them, and stays true
    for the same ones when `share` grows.
    """
    name, label = purpose.encode(), arm.encode()
    message = b"".join((_length(name), name, _length(label), label, entity))
    digest = hmac.digest(key, message, "sha256")
    # 52 bits and a half: exactly a float, never 0 and never 1, so that its logarithm exists
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / (1 << 52)


def choose(key: bytes, purpose: str, entity: bytes, weights: Mapping[str, float]) -> str:
    """Return the entity's arm.

    Args:
        key: secret of the deployment, 16 bytes or more.
        purpose: what is split, such as the release's id.
        entity: canonical bytes of the entity row's key.
        weights: of each arm, >= 0, in any unit; zero means no traffic.

    Raises:
        ValueError: if the key is short, a weight is negative or not finite, or none is positive.
    """
    if len(key) < 16:
        raise ValueError("split: the key must have 16 bytes or more")
    if any(not (weight >= 0 and math.isfinite(weight)) for weight in weights.values()):
        raise ValueError("split: weights must be finite and not negative")
    open_arms = [(arm, weight) for arm, weight in weights.items() if weight > 0]
    if not open_arms:
        raise ValueError("split: no arm has a positive weight")
    if len(open_arms) == 1:
        return open_arms[0][0]
    # -weight / ln(u) is largest for an arm with probability weight / sum; the name breaks ties
    return max(
        (-weight / math.log(unit(key, purpose, entity, arm)), arm) for arm, weight in open_arms
    )[1]


def _length(part: bytes) -> bytes:
    """Length before content, so that no two different messages are the same bytes."""
    return len(part).to_bytes(4, "big")
