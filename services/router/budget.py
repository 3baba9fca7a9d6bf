"""Retry budget of one target: how many extra calls may be made because others failed.

A token bucket. Each request deposits `ratio` tokens; each call beyond a request's first (retry,
hedge, fallback to the same target) takes one. So retries stay a fixed share of the traffic and
can't turn a brown-out into an outage. Targets with little traffic have a reserve: some extra calls
in each second, whatever was deposited. It is not on top: a second grants the larger of the two,
because what the reserve lends is repaid by the deposits of the same second, and only what is left
of the debt at its end is forgiven.

What that bounds: for any N requests in a row at reserve / ratio of them a second or more, extra
calls <= ratio * N + max_balance; counted from the start of the process, <= ratio * N + reserve, and
<= ratio * N over whole seconds. Pure: the clock is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_TOKEN = 1_000_000  # tokens are counted in millionths, so that ten deposits of 0.1 are exactly one


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """How much may be retried."""

    ratio: float = 0.1  # tokens that each request deposits
    reserve_per_s: int = 1  # extra calls that a second allows, however few requests it had
    max_balance: int = 10  # tokens that can be saved up

    def __post_init__(self) -> None:
        """Raise ValueError for a budget that bounds nothing."""
        if not 0 <= self.ratio <= 1:
            raise ValueError("budget: ratio must be in 0..1")
        if self.reserve_per_s < 0 or self.max_balance < 1:
            raise ValueError("budget: reserve_per_s >= 0 and max_balance >= 1")


class RetryBudget:
    """One target's budget. Starts with nothing saved."""

    __slots__ = ("_balance", "_config", "_deposit", "_granted", "_second")

    def __init__(self, config: BudgetConfig | None = None) -> None:
        """Start with an empty bucket."""
        self._config = config or BudgetConfig()
        self._deposit = round(self._config.ratio * _TOKEN)
        self._balance = 0  # below zero: lent by this second's reserve
        self._second: int | None = None
        self._granted = 0  # in this second

    def deposit(self, now: float) -> None:
        """Count one request to the target: its first attempt, not its retries."""
        self._roll(now)
        self._balance = min(self._balance + self._deposit, self._config.max_balance * _TOKEN)

    def withdraw(self, now: float) -> bool:
        """Take a token for one extra call; False means that it may not be made."""
        self._roll(now)
        if self._balance < _TOKEN and self._granted >= self._config.reserve_per_s:
            return False
        self._balance -= _TOKEN
        self._granted += 1
        return True

    def available(self, now: float) -> int:
        """Return how many extra calls could be made at `now`. Changes nothing."""
        granted = self._granted if self._second == math.floor(now) else 0
        return max(self._balance // _TOKEN, self._config.reserve_per_s - granted, 0)

    def _roll(self, now: float) -> None:
        """Begin a new second: a debt that could not be repaid is forgiven."""
        second = math.floor(now)
        if second != self._second:
            self._second = second
            self._granted = 0
            self._balance = max(self._balance, 0)
