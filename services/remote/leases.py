"""Room that this replica has taken ahead of need, so that most items are admitted without asking.

A lease is taken with an item's own claim, in the same step, and is part of the limit from then on:
all replicas together never admit more than there is. It holds as much as the same caller used of
the same model a moment ago, at most a hundredth of a minute's worth, and is given only while every
bucket stays half full, where nobody's share counts yet (see limit_store.py): what lies here is
missed by nobody. What is left of it after a moment lapses. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.remote.limit_claims import Claim

LIFETIME_S = 0.25
_LARGEST_SHARE = 0.01
_MEMORY = 10_000


class _Lease:
    """What one caller has in hand of one model.

    Attributes:
        left: Of each bucket of its claims.
        until: When it lapses.
        since: From when on uses are counted.
        used: How many there were.
        asked: Whether more is on its way.
    """

    __slots__ = ("asked", "left", "since", "until", "used")

    def __init__(self, claim: Claim, now: float) -> None:
        self.left = [0.0] * len(claim.takes)
        self.until = now
        self.since = now
        self.used = 1
        self.asked = False


class Leases:
    """The leases of one replica. Times are those of the monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._leases: dict[tuple[str, ...], _Lease] = {}
        self._forgot = float("-inf")

    def spend(self, claim: Claim, now: float) -> bool:
        """Take a claim from what is in hand; False where that does not cover it."""
        lease = self._leases.get(claim.name)
        if lease is None:
            return False
        lease.used += 1
        after = [left - take for left, take in zip(lease.left, claim.takes, strict=True)]
        if now >= lease.until or min(after) < 0:
            return False
        lease.left = after
        return True

    def put_back(self, claim: Claim) -> None:
        """Undo `spend`: the item is refused for something else."""
        lease = self._leases.get(claim.name)
        if lease is not None:
            lease.left = [left + take for left, take in zip(lease.left, claim.takes, strict=True)]

    def ask(self, claim: Claim, now: float) -> Sequence[float]:
        """Return how much more to take of each bucket; if it is not empty, `came` must follow."""
        lease = self._leases.get(claim.name)
        if lease is None:
            if len(self._leases) >= _MEMORY:
                self._forget(now)
            if len(self._leases) < _MEMORY:
                self._leases[claim.name] = _Lease(claim, now)
            return ()  # who comes once may never come again
        if lease.asked:
            return ()
        items = float(lease.used)
        passed = now - lease.since
        if passed > LIFETIME_S:
            items *= LIFETIME_S / passed
            lease.since, lease.used = now, 0
        for bucket, take in zip(claim.buckets, claim.takes, strict=True):
            if take > 0:
                items = min(items, bucket.size * _LARGEST_SHARE / take)
        if now >= lease.until:
            lease.left = [0.0] * len(claim.takes)
        wanted = (int(items) * take for take in claim.takes)
        more = [max(0.0, want - left) for want, left in zip(wanted, lease.left, strict=True)]
        lease.asked = any(more)
        return more if lease.asked else ()

    def came(self, claim: Claim, more: Sequence[float], now: float) -> None:
        """Take into hand what was asked for, or nothing, because there was no such room."""
        lease = self._leases.get(claim.name)
        if lease is None:
            return
        lease.asked = False
        if more:
            lease.left = [left + came for left, came in zip(lease.left, more, strict=True)]
            lease.until = now + LIFETIME_S

    def _forget(self, now: float) -> None:
        """Callers come and go; who has not come for a while has nothing in hand."""
        if now < self._forgot + LIFETIME_S:
            return
        self._forgot = now
        self._leases = {
            name: lease
            for name, lease in self._leases.items()
            if lease.asked or now - lease.until < LIFETIME_S
        }
