"""No more than a minute's worth, over all replicas, with estimates corrected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio

from services.chassis.errors import PermissionDeniedError, ResourceExhaustedError, from_status
from services.cli.embedded.valkey import Valkey
from services.remote.catalog import Model, Provider
from services.remote.catalog_access import Limits as Share
from services.remote.grants import GrantUse
from services.remote.limit_store import LocalStore, RedisStore
from services.remote.limits import Limits
from tests.local_path import running
from tests.support import free_port
from tests.unit.remote.support import make_item, start_remote
from twinpath.common.v1 import context_pb2


class HeldClock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """The held time."""
        return self.now

    def unix_us(self) -> int:
        """The held time."""
        return int(self.now * 1e6)


def model(**limits: object) -> Model:
    """A model with limits."""
    return Model.model_construct(name="m", version="1", limits=Share(**limits))


PROVIDER = Provider.model_construct(name="acme")


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real state store; its URL."""
    server = Valkey("state", tmp_path_factory.mktemp("valkey"))
    with running(server):
        yield server.url


@contextlib.asynccontextmanager
async def redis_limits(url: str) -> AsyncIterator[Limits]:
    """Limits in the state store, emptied."""
    client = redis.asyncio.Redis.from_url(url)
    await client.flushdb()
    yield Limits(RedisStore(client, LocalStore(clock := HeldClock()), clock, 5.0))
    await client.aclose()


@pytest.fixture(params=["local", "redis"])
async def limits(request: pytest.FixtureRequest, valkey: str) -> AsyncIterator[Limits]:
    """Both kinds of buckets."""
    if request.param == "local":
        yield Limits(LocalStore(HeldClock()))
        return
    async with redis_limits(valkey) as found:
        yield found


async def admitted(limits: Limits, chosen: Model, caller: str, tokens: int, tries: int) -> int:
    """How many of so many tries at once were admitted."""
    results = await asyncio.gather(
        *(limits.acquire(PROVIDER, chosen, (caller, caller), tokens) for _ in range(tries)),
        return_exceptions=True,
    )
    for result in results:
        assert not isinstance(result, BaseException) or isinstance(result, ResourceExhaustedError)
    return sum(not isinstance(result, BaseException) for result in results)


async def test_a_minutes_worth_of_requests_is_admitted_and_no_more(limits: Limits) -> None:
    """Also when all arrive at once."""
    assert await admitted(limits, model(requests_per_minute=6), "a", 1, 20) == 6


async def test_one_caller_leaves_room_for_the_others(limits: Limits) -> None:
    """Its own share ends before the model's."""
    chosen = model(requests_per_minute=6, per_caller={"requests_per_minute": 2})
    assert await admitted(limits, chosen, "greedy", 1, 20) == 2
    assert await admitted(limits, chosen, "other", 1, 20) == 2


async def test_a_refused_item_takes_nothing(limits: Limits) -> None:
    """Where one bucket has no room, the others stay as they were."""
    chosen = model(requests_per_minute=5, tokens_per_minute=100)
    assert await admitted(limits, chosen, "a", 60, 1) == 1
    assert await admitted(limits, chosen, "a", 60, 3) == 0
    assert await admitted(limits, chosen, "a", 10, 9) == 4


async def test_the_refusal_says_what_and_how_long(limits: Limits) -> None:
    """RESOURCE_EXHAUSTED with the limit's name, its scope, and when there is room again."""
    chosen = model(per_caller={"tokens_per_minute": 60})
    await limits.acquire(PROVIDER, chosen, ("a", "a"), 60)
    with pytest.raises(ResourceExhaustedError) as caught:
        await limits.acquire(PROVIDER, chosen, ("a", "a"), 30)
    error = caught.value
    assert error.reason == "RATE_LIMITED"
    assert (error.metadata["limit"], error.metadata["scope"]) == ("tokens_per_minute", "caller")
    assert 25 < error.retry_after <= 30


async def test_estimates_are_corrected_both_ways(limits: Limits) -> None:
    """What was not used is given back; what was used beyond is owed."""
    chosen = model(tokens_per_minute=100)
    taken = await limits.acquire(PROVIDER, chosen, ("a", "a"), 100)
    assert await admitted(limits, chosen, "a", 10, 1) == 0
    await limits.settle(taken, 40)
    assert await admitted(limits, chosen, "a", 60, 1) == 1
    await limits.settle(
        await limits.acquire(PROVIDER, model(tokens_per_minute=9), ("b", "b"), 0), 5
    )
    await limits.settle(taken, None)  # nothing is known: nothing is corrected


async def test_an_item_larger_than_a_minute_is_admitted_once_the_bucket_is_full(
    limits: Limits,
) -> None:
    """It would wait for ever else; what it takes is owed."""
    chosen = model(tokens_per_minute=10)
    assert await admitted(limits, chosen, "a", 500, 1) == 1
    assert await admitted(limits, chosen, "a", 1, 1) == 0


async def test_room_comes_back_with_time() -> None:
    """A minute's worth in a minute, evenly."""
    clock = HeldClock()
    limits = Limits(LocalStore(clock))
    chosen = model(requests_per_minute=6)
    assert await admitted(limits, chosen, "a", 1, 9) == 6
    clock.now = 10.0
    assert await admitted(limits, chosen, "a", 1, 9) == 1
    clock.now = 999.0
    assert await admitted(limits, chosen, "a", 1, 9) == 6


async def test_replicas_share_what_there_is(valkey: str) -> None:
    """Two replicas admit together what one would."""
    chosen = model(requests_per_minute=6)
    async with redis_limits(valkey) as first:
        client = redis.asyncio.Redis.from_url(valkey)
        second = Limits(RedisStore(client, LocalStore(clock := HeldClock()), clock, 5.0))
        counts = await asyncio.gather(
            *(admitted(replica, chosen, "a", 1, 10) for replica in (first, second))
        )
        await client.aclose()
    assert sum(counts) == 6


async def test_without_the_store_each_replica_holds_to_the_limit_itself(caplog) -> None:
    """Neither an outage for callers nor a door without a limit; said once in the log."""
    client = redis.asyncio.Redis.from_url(f"redis://127.0.0.1:{free_port()}")
    limits = Limits(RedisStore(client, LocalStore(clock := HeldClock()), clock, 5.0))
    assert await admitted(limits, model(requests_per_minute=3), "a", 1, 9) == 3
    assert caplog.text.count("the state store is away") == 1
    await client.aclose()


async def test_the_service_refuses_over_the_limit_and_sends_nothing(keys, tmp_path) -> None:
    """By the caller in the item, not by the router that brings it; purposes don't multiply it."""
    from tests.unit.remote.support import provider_yaml

    def provider(base_url, token_file) -> str:
        text = provider_yaml(base_url, token_file)
        share = "    limits: {per_caller: {requests_per_minute: 1}}\n"
        return text.replace(
            '  - name: echo\n    version: "1"\n', '  - name: echo\n    version: "1"\n' + share
        )

    def caller(identity: str, purpose: str) -> context_pb2.ItemContext:
        who = context_pb2.Caller(identity=identity, purpose=purpose)
        return context_pb2.ItemContext(id=f"{identity}-{purpose}", caller=who)

    async with start_remote(keys, tmp_path, provider=provider) as remote:
        for identity, purpose, reason in (
            ("alice", "a", ""), ("alice", "b", "RATE_LIMITED"), ("bob", "a", ""),
        ):  # fmt: skip
            (result,) = await remote.infer(make_item(keys, context=caller(identity, purpose)))
            error = from_status(result.status)
            assert (error.reason if error else "") == reason
        assert remote.posts == 2


def use(name: str = "g", remember_s: float = 60.0) -> GrantUse:
    """A grant's use."""
    return GrantUse(name, remember_s)


async def replica(url: str, stack: contextlib.AsyncExitStack) -> Limits:
    """One replica's limits in the state store."""
    client = redis.asyncio.Redis.from_url(url)
    stack.push_async_callback(client.aclose)
    clock = HeldClock()
    store = RedisStore(client, LocalStore(clock), clock, 5.0)
    stack.push_async_callback(store.aclose)
    return Limits(store, shared=True)


async def test_a_grant_that_served_at_one_replica_serves_at_no_other(valkey: str) -> None:
    """Also for a model without limits; another grant is admitted."""
    async with contextlib.AsyncExitStack() as stack:
        first, second = [await replica(valkey, stack) for _ in range(2)]
        chosen = model()
        tries = [
            limits.acquire(PROVIDER, chosen, ("a", "a"), 1, grant=use("twice"))
            for limits in (first, second)
        ]
        found = await asyncio.gather(*tries, return_exceptions=True)
        (refused,) = [error for error in found if isinstance(error, BaseException)]
        assert isinstance(refused, PermissionDeniedError)
        assert refused.reason == "GRANT_USED"
        await second.acquire(PROVIDER, chosen, ("a", "a"), 1, grant=use("other"))


async def test_a_grant_is_not_used_up_where_a_limit_refuses(valkey: str) -> None:
    """It may come again, once there is room; and a used one takes nothing of the limit."""
    async with contextlib.AsyncExitStack() as stack:
        limits = await replica(valkey, stack)
        chosen = model(per_caller={"requests_per_minute": 1})
        await limits.acquire(PROVIDER, chosen, ("u1", ""), 1, grant=use("one"))
        with pytest.raises(ResourceExhaustedError):
            await limits.acquire(PROVIDER, chosen, ("u1", ""), 1, grant=use("two"))
        await limits.acquire(PROVIDER, chosen, ("u2", ""), 1, grant=use("two"))
        with pytest.raises(PermissionDeniedError):
            await limits.acquire(PROVIDER, chosen, ("u3", ""), 1, grant=use("one"))
        await limits.acquire(PROVIDER, chosen, ("u3", ""), 1, grant=use("three"))


async def test_a_used_grant_is_remembered_until_it_could_not_serve_any_more(valkey: str) -> None:
    """The store forgets it then by itself."""
    async with contextlib.AsyncExitStack() as stack:
        limits = await replica(valkey, stack)
        client = redis.asyncio.Redis.from_url(valkey)
        stack.push_async_callback(client.aclose)
        await limits.acquire(PROVIDER, model(), ("a", "a"), 1, grant=use("brief", 90.0))
        assert 80_000 < await client.pttl("twinpath:grant:brief") <= 90_000


async def test_a_greedy_caller_does_not_starve_the_others(limits: Limits) -> None:
    """While two compete, each has its half of what is left; whoever is alone may take all."""
    chosen = model(requests_per_minute=40)
    assert await admitted(limits, chosen, "other", 1, 1) == 1
    greedy = await admitted(limits, chosen, "greedy", 1, 100)
    assert greedy < 39
    assert await admitted(limits, chosen, "other", 1, 100) == 39 - greedy
    alone = Model.model_construct(name="n", version="1", limits=Share(requests_per_minute=40))
    assert await admitted(limits, alone, "greedy", 1, 100) == 40


async def test_a_share_that_is_used_up_is_said_to_be_that(limits: Limits) -> None:
    """The model has room, but not for this caller: scope `share`."""
    chosen = model(requests_per_minute=8)
    await admitted(limits, chosen, "other", 1, 1)
    await admitted(limits, chosen, "greedy", 1, 8)
    with pytest.raises(ResourceExhaustedError) as caught:
        await limits.acquire(PROVIDER, chosen, ("greedy", "greedy"), 1)
    assert caught.value.metadata["scope"] == "share"
    assert caught.value.retry_after > 0


async def test_shares_go_by_weight(limits: Limits) -> None:
    """Under contention the caller with three times the weight gets more; nobody gets nothing."""
    chosen = model(requests_per_minute=400, weights={"important": 3.0})
    for name in ("important", "plain"):
        await admitted(limits, chosen, name, 1, 1)
    got = {"important": 0, "plain": 0}
    for _ in range(400):
        for name in got:
            got[name] += await admitted(limits, chosen, name, 1, 1)
    assert sum(got.values()) >= 380
    assert got["important"] > 1.8 * got["plain"] > 0


async def test_the_other_comes_later_and_finds_its_share_of_what_fills() -> None:
    """A caller that took everything does not keep what comes back from whoever joins."""
    clock = HeldClock()
    limits = Limits(LocalStore(clock))
    chosen = model(requests_per_minute=60)
    assert await admitted(limits, chosen, "greedy", 1, 100) == 60
    got = {"greedy": 0, "late": 0}
    for second in range(1, 121):
        clock.now = float(second)
        for name in got:  # the greedy one is always first
            got[name] += await admitted(limits, chosen, name, 1, 5)
    assert got["late"] >= 50
    assert got["greedy"] >= 50
