"""Which replica gets the next call."""

from __future__ import annotations

from services.local.replicas import Balancer, Replica, RetryBudget

MODEL = ("m", "1")


def replicas(count: int) -> list[Replica[str]]:
    """Replicas that are up and hold the model."""
    made = [Replica(f"r{n}", f"client {n}") for n in range(count)]
    for replica in made:
        replica.models = frozenset({MODEL})
        replica.answered()
    return made


def test_the_one_with_the_fewest_calls_is_picked() -> None:
    """Equals take turns."""
    a, b, c = replicas(3)
    balancer = Balancer([a, b, c])
    a.in_flight, b.in_flight, c.in_flight = 2, 1, 2
    assert balancer.pick(MODEL) is b
    b.in_flight = 2
    assert {balancer.pick(MODEL).url for _ in range(3)} == {"r0", "r1", "r2"}


def test_only_those_that_are_up_and_hold_the_model() -> None:
    """Down, without the model, or tried already: not picked."""
    a, b, c = replicas(3)
    a.silent(refused=True)
    b.models = frozenset()
    balancer = Balancer([a, b, c])
    assert balancer.pick(MODEL) is c
    assert balancer.pick(MODEL, [c]) is None
    assert balancer.pick(("other", "1")) is None


def test_one_missed_ping_is_no_outage_and_two_are() -> None:
    """A refused connection is one at once; an answer ends it."""
    [replica] = replicas(1)
    replica.silent(refused=False)
    assert replica.up
    replica.silent(refused=False)
    assert not replica.up
    replica.answered()
    assert replica.up
    replica.silent(refused=True)
    assert not replica.up


def test_a_replica_that_failed_a_call_comes_last_until_the_next_ping() -> None:
    """It is still asked when it is the only one."""
    a, b = replicas(2)
    a.failed()
    b.in_flight = 50
    balancer = Balancer([a, b])
    assert balancer.pick(MODEL) is b
    assert balancer.pick(MODEL, [b]) is a
    a.answered()
    assert balancer.pick(MODEL) is a


def test_as_many_may_go_elsewhere_as_were_under_way() -> None:
    """A replica takes along what is on it: that much load was there before it went."""
    budget = RetryBudget(share=0.1, least=2)
    for under_way in range(1, 129):
        budget.earn(under_way)
    assert sum(budget.spend() for _ in range(200)) == 128
    budget.earn(128)  # the same load again: no new allowance but the share of the calls
    assert not budget.spend()
    for _ in range(10):
        budget.earn(128)
    assert [budget.spend(), budget.spend()] == [True, False]


def test_the_allowance_of_busy_times_fades() -> None:
    """It is worn off by the calls of quieter ones."""
    budget = RetryBudget(share=0.5, least=2)
    budget.earn(10)
    for _ in range(10):
        budget.earn(1)
    assert sum(budget.spend() for _ in range(20)) == 5


def test_second_tries_are_a_share_of_first_ones() -> None:
    """Under a general outage they stop; calls that are made earn them back."""
    budget = RetryBudget(share=0.25, least=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()
    assert not budget.spend()
