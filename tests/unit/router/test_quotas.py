"""Quotas: who has how much, in the shared buckets or, while they are away, in our own."""

from __future__ import annotations

import pytest

from services.chassis.call import Identity
from services.chassis.errors import ResourceExhaustedError
from services.router.catalog import load_catalog
from services.router.quotas import OwnBuckets, QuotaFile, QuotaRule, Quotas
from tests.unit.router.ports import CATALOG, Clock

ALICE = Identity("alice", "t", frozenset({"caller"}))
BOB = Identity("bob", "t", frozenset({"caller", "trial"}))


class Shared:
    """Shared buckets: our own kind, on a clock of the store's; or away."""

    def __init__(self, clock: Clock) -> None:
        self.buckets = OwnBuckets(clock)
        self.away = False
        self.asked: list[str] = []

    async def take(self, name: str, per_s: float, size: float) -> float | None:
        """See quotas.Buckets."""
        self.asked.append(name)
        return None if self.away else self.buckets.take(name, per_s, size)


def world() -> tuple[Quotas, Shared, Clock]:
    """Quotas over shared buckets on one clock."""
    clock = Clock()
    shared = Shared(clock)
    return Quotas(shared, OwnBuckets(clock)), shared, clock


async def used(quotas: Quotas, rules: tuple[QuotaRule, ...], who: Identity, limit: int = 99) -> int:
    """How many requests pass before one is refused."""
    for passed in range(limit):
        try:
            await quotas.take(rules, who)
        except ResourceExhaustedError:
            return passed
    return limit


async def test_a_caller_has_the_burst_and_then_the_rate() -> None:
    """After the burst a refusal says when to come back, and then there is room for one."""
    quotas, _, clock = world()
    rules = (QuotaRule(id="r", per_minute=60, burst=5),)
    assert await used(quotas, rules, ALICE) == 5
    with pytest.raises(ResourceExhaustedError) as caught:
        await quotas.take(rules, ALICE)
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert caught.value.metadata == {"quota": "r"}
    assert caught.value.retry_after == pytest.approx(1.0)
    clock.now += caught.value.retry_after or 0
    assert await used(quotas, rules, ALICE) == 1


async def test_callers_do_not_use_up_each_others_quota() -> None:
    """Each caller has a bucket, unless the rule is for a tenant or for all."""
    quotas, _, _ = world()
    assert await used(quotas, (QuotaRule(id="r", per_minute=6, burst=3),), ALICE) == 3
    assert await used(quotas, (QuotaRule(id="r", per_minute=6, burst=3),), BOB) == 3
    together = (QuotaRule(id="s", per_minute=6, burst=3, each="tenant"),)
    assert await used(quotas, together, ALICE) == 3
    assert await used(quotas, together, BOB) == 0


async def test_only_rules_that_fit_count() -> None:
    """A rule for a role, a caller or a tenant does not touch others, nor ask the store for them."""
    quotas, shared, _ = world()
    rules = (
        QuotaRule(id="a", role="trial", per_minute=6, burst=2),
        QuotaRule(id="b", caller="carol", per_minute=6, burst=1),
        QuotaRule(id="c", tenant="u", per_minute=6, burst=1),
    )
    assert await used(quotas, rules, ALICE) == 99
    assert shared.asked == []
    assert await used(quotas, rules, BOB) == 2


async def test_while_the_store_is_away_each_router_counts_for_itself() -> None:
    """An outage of the store neither stops callers nor sets them free."""
    quotas, shared, _ = world()
    rules = (QuotaRule(id="r", per_minute=6, burst=4),)
    shared.away = True
    assert await used(quotas, rules, ALICE) == 4


def test_names_of_buckets_can_not_be_made_equal() -> None:
    """A tenant and a subject that join to the same text have different buckets."""
    rule = QuotaRule(id="r", per_minute=6)
    assert rule.bucket(Identity("bc", "a")) != rule.bucket(Identity("c", "ab"))


def test_own_buckets_are_bounded() -> None:
    """A flood of names does not fill the memory."""
    own = OwnBuckets(Clock())
    for number in range(20_000):
        own.take(str(number), 1, 1)
    assert len(own._buckets) <= 10_000


def test_the_catalogs_own_file_loads() -> None:
    """`quotas.yaml` is read with the catalog; ids that stand twice are refused."""
    assert [rule.id for rule in load_catalog(CATALOG).quotas] == ["trial_callers"]
    with pytest.raises(ValueError, match="stand twice"):
        QuotaFile.model_validate({"quotas": [{"id": "a", "per_minute": 1}] * 2})
