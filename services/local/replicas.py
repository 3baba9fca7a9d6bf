"""Triton's replicas: which of them is well, which of them gets the next call. Pure.

A call goes to the replica with the fewest calls in flight, of those that are up and hold the
model. One that fails because of its replica may go to another one, while time and the retry
budget last: under a general outage second tries would only double the load.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

# Pings that may go unanswered: a busy machine misses one, a hanging server all of them.
STRIKES = 2

S = TypeVar("S")


class Replica(Generic[S]):
    """One server, and what is known about its health.

    `server` is its client; `loaded` are the keys of the models that are ready on it, `models` those
    of them that may be asked: all, but under explicit control only the warm ones.
    """

    def __init__(self, url: str, server: S) -> None:
        self.url = url
        self.server = server
        self.models: frozenset[tuple[str, str]] = frozenset()
        self.loaded: frozenset[tuple[str, str]] = frozenset()
        self.in_flight = 0
        self.failures = 0
        self.up = False
        self._strikes = 0

    def answered(self) -> None:
        """A ping came back."""
        self.up = True
        self._strikes = 0
        self.failures = 0

    def silent(self, *, refused: bool) -> None:
        """A ping did not come back; `refused`: nobody listens there."""
        self._strikes = STRIKES if refused else self._strikes + 1
        if self._strikes >= STRIKES:
            self.up = False

    def failed(self) -> None:
        """A call failed because of this replica: others are preferred until the next ping."""
        self.failures += 1


class RetryBudget:
    """Second tries for a share of the calls: each call earns `share`, each second try costs 1.

    At once there may be as many as calls are under way, and never fewer than `least`: all that are
    on a replica fall with it, and sending them elsewhere is no more load than there was. What a
    rise in load allows is worn off again by the calls that follow.
    """

    def __init__(self, share: float = 0.1, least: float = 20.0) -> None:
        self._share = share
        self._least = least
        self._most = least
        self._tokens = least

    def earn(self, under_way: int = 0) -> None:
        """A first try is made, while so many calls are under way, itself included."""
        most = max(self._least, under_way, self._most - self._share)
        rise = max(0.0, most - self._most)
        self._tokens = min(most, self._tokens + self._share + rise)
        self._most = most

    def spend(self) -> bool:
        """Take one second try, if there is one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Balancer(Generic[S]):
    """Chooses replicas."""

    def __init__(self, replicas: Sequence[Replica[S]], budget: RetryBudget | None = None) -> None:
        self.replicas = list(replicas)
        self.budget = budget or RetryBudget()
        self._turn = 0

    def begin(self) -> None:
        """Note a first try, which the budget for second ones follows."""
        self.budget.earn(1 + sum(replica.in_flight for replica in self.replicas))

    def up(self) -> list[Replica[S]]:
        """Return the replicas that answer pings."""
        return [replica for replica in self.replicas if replica.up]

    def pick(self, model: tuple[str, str], tried: Collection[Replica[S]] = ()) -> Replica[S] | None:
        """Return the replica for the next call of a model, None if there is none left."""
        self._turn += 1
        count = len(self.replicas)
        best: Replica[S] | None = None
        for step in range(count):  # from another start each time, so that equals take turns
            replica = self.replicas[(self._turn + step) % count]
            if not replica.up or replica in tried or model not in replica.models:
                continue
            if best is None or _load(replica) < _load(best):
                best = replica
        return best


def _load(replica: Replica) -> tuple[int, int]:
    return min(replica.failures, 1), replica.in_flight
