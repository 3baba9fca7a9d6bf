"""Retries stay a fixed share of the traffic, whatever fails."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.router.budget import BudgetConfig, RetryBudget


@pytest.mark.parametrize("rate", [100, 137, 1000])
@pytest.mark.parametrize("wants", [1, 2, 5])
def test_attempts_stay_within_a_tenth_when_everything_is_down(rate: int, wants: int) -> None:
    """At 100 requests/s and more, attempts/requests <= 1.10 after every whole second."""
    budget = RetryBudget()
    attempts = 0
    for i in range(rate * 30):
        budget.deposit(i / rate)
        attempts += 1 + sum(budget.withdraw(i / rate) for _ in range(wants))
        if (i + 1) % rate == 0:
            assert attempts <= Fraction(110, 100) * (i + 1)
    assert attempts >= 1.09 * rate * 30


def test_a_tenth_holds_over_many_targets_each_with_its_own_budget() -> None:
    """With a request's fallback charged to the next target's budget, the sum stays a tenth."""
    budgets = [RetryBudget() for _ in range(4)]
    attempts = requests = 0
    for i in range(6000):
        now, first = i / 200, i % 4
        requests += 1
        attempts += 1
        budgets[first].deposit(now)
        attempts += sum(budgets[(first + k) % 4].withdraw(now) for k in range(4))
    assert attempts <= Fraction(110, 100) * requests


def test_an_outage_after_a_long_good_time_costs_the_saved_tokens_once() -> None:
    """Saved tokens are bounded: a fault window of 30 s at 100/s sees at most 10 extra."""
    budget = RetryBudget()
    for i in range(100 * 60):
        budget.deposit(i / 100)
    extra = 0
    for i in range(100 * 30):
        budget.deposit(60 + i / 100)
        extra += sum(budget.withdraw(60 + i / 100) for _ in range(3))
    assert extra <= 300 + BudgetConfig().max_balance


def test_little_traffic_may_still_retry() -> None:
    """At one request a second, each of them may be retried once: the reserve."""
    budget = RetryBudget()
    for second in range(50):
        budget.deposit(second + 0.2)
        assert budget.withdraw(second + 0.3)
        assert not budget.withdraw(second + 0.4)


def test_no_reserve_means_no_reserve() -> None:
    """With a reserve of 0, only what was deposited can be taken: ten requests for one retry."""
    budget = RetryBudget(BudgetConfig(reserve_per_s=0))
    for _ in range(9):
        budget.deposit(0.0)
        assert not budget.withdraw(0.0)
    budget.deposit(0.0)
    assert budget.withdraw(0.0)


@pytest.mark.parametrize("wrong", [{"ratio": -0.1}, {"ratio": 1.5}, {"max_balance": 0}])
def test_a_budget_that_bounds_nothing_is_refused(wrong: dict[str, int]) -> None:
    """Configuration mistakes are found at load."""
    with pytest.raises(ValueError, match="budget:"):
        BudgetConfig(**wrong)


@given(
    gaps=st.lists(st.floats(0, 0.5), max_size=200),
    wants=st.integers(0, 4),
    reserve=st.integers(0, 3),
)
@settings(deadline=None)
def test_a_second_grants_the_larger_of_deposits_and_reserve(
    gaps: list[float], wants: int, reserve: int
) -> None:
    """From the start of the process: granted <= sum over seconds of max(earned, reserve)."""
    budget = RetryBudget(BudgetConfig(reserve_per_s=reserve, max_balance=1000))
    earned: dict[int, Fraction] = {}
    granted = 0
    for now in itertools.accumulate(gaps):
        budget.deposit(now)
        earned[int(now)] = earned.get(int(now), Fraction(0)) + Fraction(1, 10)
        granted += sum(budget.withdraw(now) for _ in range(wants))
    assert granted <= sum(max(share, Fraction(reserve)) for share in earned.values())


class BudgetMachine(RuleBasedStateMachine):
    """Any order of requests, retries and waits, against exact fractions."""

    CONFIG = BudgetConfig(ratio=0.25, reserve_per_s=2, max_balance=3)

    def __init__(self) -> None:
        super().__init__()
        self.now = Fraction(0)
        self.budget = RetryBudget(self.CONFIG)
        self.balance = Fraction(0)
        self.granted_at: list[int] = []

    @rule(milliseconds=st.sampled_from([1, 100, 400, 1000, 7000]))
    def wait(self, milliseconds: int) -> None:
        """Time passes; a debt does not survive its second."""
        before = int(self.now)
        self.now += Fraction(milliseconds, 1000)
        if int(self.now) != before:
            self.balance = max(self.balance, Fraction(0))

    @rule(count=st.integers(1, 20))
    def request(self, count: int) -> None:
        """Deposits add up to the limit."""
        for _ in range(count):
            self.budget.deposit(float(self.now))
            self.balance = min(self.balance + Fraction(1, 4), Fraction(3))

    @rule()
    def retry(self) -> None:
        """Granted exactly when a token or this second's reserve is there."""
        this_second = self.granted_at.count(int(self.now))
        allowed = self.balance >= 1 or this_second < 2
        assert self.budget.withdraw(float(self.now)) == allowed
        if allowed:
            self.balance -= 1
            self.granted_at.append(int(self.now))

    @invariant()
    def available_says_how_many_would_be_granted(self) -> None:
        """The look agrees with the model and changes nothing."""
        reserve = 2 - self.granted_at.count(int(self.now))
        assert self.budget.available(float(self.now)) == max(int(self.balance), reserve, 0)


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
