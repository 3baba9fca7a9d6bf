"""Room taken ahead: it saves questions to the store, and never makes the limit larger."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio

from services.chassis.errors import PermissionDeniedError, ResourceExhaustedError
from services.cli.embedded.valkey import Valkey
from services.remote.catalog import Model, Provider
from services.remote.catalog_access import Limits as Share
from services.remote.grants import GrantUse
from services.remote.leases import LIFETIME_S, Leases
from services.remote.limit_claims import Bucket, Claim
from services.remote.limit_store import LocalStore, RedisStore
from services.remote.limits import Limits
from tests.local_path import running

PROVIDER = Provider.model_construct(name="acme")


class HeldClock:
    """A clock that stands still: no lease lapses."""

    def monotonic(self) -> float:
        """The held time."""
        return 0.0

    def unix_us(self) -> int:
        """The held time."""
        return 0


def claim(take: float = 1.0, size: int = 60_000, who: str = "a") -> Claim:
    """A claim on one bucket that callers share."""
    return Claim([Bucket("bucket", size, tokens=False, caller=False, weight=1.0, who=who)], [take])


def model(**limits: object) -> Model:
    """A model with limits."""
    return Model.model_construct(name="m", version="1", limits=Share(**limits))


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real state store; its URL."""
    server = Valkey("state", tmp_path_factory.mktemp("valkey"))
    with running(server):
        yield server.url


@pytest.fixture
async def client(valkey: str) -> AsyncIterator[redis.asyncio.Redis]:
    """The state store, emptied."""
    async with redis.asyncio.Redis.from_url(valkey) as client:
        await client.flushdb()
        await client.config_resetstat()
        yield client


@contextlib.asynccontextmanager
async def replicas(client: redis.asyncio.Redis, count: int) -> AsyncIterator[list[Limits]]:
    """So many replicas' limits in one store."""
    clock = HeldClock()
    stores = [RedisStore(client, LocalStore(clock), clock, 5.0) for _ in range(count)]
    yield [Limits(store, shared=True) for store in stores]
    for store in stores:
        await store.aclose()


async def asked(client: redis.asyncio.Redis, command: str) -> int:
    """How often the store was asked so."""
    found = await client.info("commandstats")
    return found.get(f"cmdstat_{command}", {"calls": 0})["calls"]


def test_who_comes_often_takes_as_much_ahead_as_it_used() -> None:
    """Nothing for the first, who may never come again; then more, until it covers what comes."""
    leases = Leases()
    assert not leases.ask(claim(), 0.0)
    assert not leases.spend(claim(), 0.0)
    assert leases.ask(claim(), 0.0) == [2.0]
    leases.came(claim(), [2.0], 0.0)
    assert [leases.spend(claim(), 0.0) for _ in range(3)] == [True, True, False]
    assert leases.ask(claim(), 0.0) == [5.0]


def test_a_lease_is_at_most_a_hundredth_of_a_minute() -> None:
    """In requests and in tokens; where that is less than an item, there is none."""
    leases = Leases()
    for size, take, most in ((700, 1.0, 7.0), (60_000, 250.0, 500.0), (99, 1.0, 0.0)):
        one = claim(take, size, who=str(size))
        leases.ask(one, 0.0)
        for _ in range(100):
            leases.spend(one, 0.0)
        assert sum(leases.ask(one, 0.0)) == most


def test_what_is_left_of_a_lease_lapses() -> None:
    """What was taken ahead a moment ago does not serve later, nor does it make the next larger."""
    leases = Leases()
    leases.ask(claim(), 0.0)
    for _ in range(9):
        leases.spend(claim(), 0.0)
    leases.came(claim(), leases.ask(claim(), 0.0), 0.0)
    assert leases.spend(claim(), LIFETIME_S / 2)
    assert not leases.spend(claim(), LIFETIME_S)
    assert leases.ask(claim(), LIFETIME_S * 1e6) == ()


def test_only_one_asks_for_more_at_a_time() -> None:
    """Those that come meanwhile take for themselves alone, also when the store gave nothing."""
    leases = Leases()
    leases.ask(claim(), 0.0)
    assert leases.ask(claim(), 0.0)
    assert not leases.ask(claim(), 0.0)
    leases.came(claim(), (), 0.0)
    assert not leases.spend(claim(), 0.0)
    assert leases.ask(claim(), 0.0)


def test_versions_with_other_limits_have_other_leases() -> None:
    """Two versions of a model may share one bucket of several: what is in hand is not mixed up."""
    leases = Leases()
    tokens = claim().buckets[0]
    requests = Bucket("requests", 60_000, tokens=False, caller=False, weight=1.0, who="a")
    both = Claim([requests, tokens], [1.0, 9.0])
    for one in (both, claim(9.0)):
        leases.ask(one, 0.0)
        leases.came(one, leases.ask(one, 0.0), 0.0)
    assert leases.spend(both, 0.0)
    assert not leases.spend(both, 0.0)
    assert leases.spend(claim(9.0), 0.0)


def test_callers_that_went_are_forgotten() -> None:
    """Memory is bounded, whoever asks."""
    leases = Leases()
    for number in range(25_000):
        leases.ask(claim(who=str(number)), number / 1000)
    assert len(leases._leases) <= 10_000


async def test_most_items_ask_the_store_for_their_grant_alone(client: redis.asyncio.Redis) -> None:
    """While there is plenty: the limit's script runs once for many."""
    async with replicas(client, 1) as (limits,):
        for number in range(300):
            use = GrantUse(f"g{number}", 60.0)
            chosen = model(requests_per_minute=10_000_000)
            await limits.acquire(PROVIDER, chosen, ("a", "a"), 1, grant=use)
    assert await asked(client, "evalsha") < 20
    assert await asked(client, "set") == 300


async def test_replicas_with_leases_admit_no_more_than_the_limit(
    client: redis.asyncio.Redis,
) -> None:
    """All that come at once at two replicas, in many turns; nothing that was leased is lost."""
    size, admitted, start = 2000, 0, time.monotonic()
    chosen = model(requests_per_minute=size, tokens_per_minute=100 * size)
    async with replicas(client, 2) as both:
        for turn in range(150):
            tries = [
                limits.acquire(
                    PROVIDER, chosen, (who, who), 10, grant=GrantUse(f"{turn}{who}{at}{n}", 60.0)
                )
                for at, limits in enumerate(both)
                for who in ("a", "b")
                for n in range(5)
            ]
            for found in await asyncio.gather(*tries, return_exceptions=True):
                assert not isinstance(found, BaseException) or isinstance(
                    found, ResourceExhaustedError
                )
                admitted += not isinstance(found, BaseException)
    filled = (time.monotonic() - start) * size / 60  # what came back meanwhile
    assert size - 100 <= admitted <= size + filled + 1


async def test_a_used_grant_takes_nothing_of_a_lease(client: redis.asyncio.Redis) -> None:
    """It served at the other replica: refused here, and what it would have taken is put back."""
    chosen = model(requests_per_minute=10_000_000)
    async with replicas(client, 2) as (first, second):
        for number in range(20):
            await second.acquire(
                PROVIDER, chosen, ("a", "a"), 1, grant=GrantUse(f"s{number}", 60.0)
            )
        before = await asked(client, "evalsha")
        await first.acquire(PROVIDER, chosen, ("a", "a"), 1, grant=GrantUse("twice", 60.0))
        for _ in range(200):
            with pytest.raises(PermissionDeniedError) as caught:
                await second.acquire(PROVIDER, chosen, ("a", "a"), 1, grant=GrantUse("twice", 60.0))
            assert caught.value.reason == "GRANT_USED"
        assert await asked(client, "evalsha") <= before + 3


async def test_nothing_is_leased_once_a_bucket_is_half_empty(client: redis.asyncio.Redis) -> None:
    """From there on each item asks, so that shares and the last of the room are exact."""
    chosen = model(requests_per_minute=1000)
    async with replicas(client, 1) as (limits,):
        for number in range(900):
            await limits.acquire(
                PROVIDER, chosen, ("a", "a"), 1, grant=GrantUse(f"h{number}", 60.0)
            )
        before = await asked(client, "evalsha")
        for number in range(50):
            await limits.acquire(
                PROVIDER, chosen, ("a", "a"), 1, grant=GrantUse(f"i{number}", 60.0)
            )
        assert await asked(client, "evalsha") == before + 50
