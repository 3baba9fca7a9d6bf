"""How much may be asked of a model in a minute: in all, and by one caller; over all replicas.

Tokens are estimated before and corrected after; a bucket may go below zero then, which the next
ones wait for. In the same step an item's grant is used up: see limit_store.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Iterator, Sequence

from services.chassis.errors import ResourceExhaustedError, ServiceError
from services.remote.catalog import Model, Provider
from services.remote.catalog_access import Share
from services.remote.grants import GrantUse, used_already
from services.remote.limit_claims import Bucket, Claim, Refusal
from services.remote.limit_store import Store

_LONGEST_WAIT_S = 60.0
_CORRECTION_S = 1.0
_NO_TIME_LIMIT_S = 3600.0
_MEMORY = 10_000
_REQUESTS, _TOKENS = "requests", "tokens"
log = logging.getLogger(__name__)


class Limits:
    """Holds items to the limits of the catalog.

    Args:
        store: Where they are kept.
        shared: Whether the store remembers grants for all replicas: then it is asked also where
            there is no limit.
    """

    def __init__(self, store: Store, *, shared: bool = False) -> None:
        self._store = store
        self._shared = shared
        self._corrections: set[asyncio.Task[None]] = set()
        self._buckets: dict[tuple[int, str, str], tuple[Model, Sequence[Bucket]]] = {}

    async def acquire(
        self,
        provider: Provider,
        model: Model,
        caller: tuple[str, str],
        tokens: int,
        *,
        grant: GrantUse | None = None,
        left_s: float = _NO_TIME_LIMIT_S,
    ) -> Claim:
        """Take one request and about so many tokens, and use the grant up; or take nothing.

        Args:
            provider: Of the model.
            model: Whose limits.
            caller: A key for the caller, and its name in the catalog's weights.
            tokens: About how many tokens the item takes.
            grant: What the item's grant permits once, over all replicas.
            left_s: Seconds that this may take.

        Returns:
            What was taken.

        Raises:
            ResourceExhaustedError: RATE_LIMITED, with what is limited and how long to wait.
            PermissionDeniedError: GRANT_USED.
            DeadlineExceededError: The time was up.
        """
        buckets = self._buckets_of(provider, model, caller)
        takes = [tokens if bucket.tokens else 1 for bucket in buckets]
        claim = Claim(buckets, takes)
        if grant is not None and self._shared:
            claim = Claim(buckets, takes, grant=grant.id, remember_s=grant.remember_s)
        elif not buckets:
            return claim
        refusal = await self._store.take(claim, left_s)
        if refusal is None:
            return claim
        if refusal.bucket is None:
            raise used_already()
        raise _limited(provider, model, refusal.bucket, refusal)

    async def use_grant(self, grant: GrantUse, left_s: float) -> None:
        """Use a grant up, over all replicas, where no limit counts: a batch has the vendor's own.

        Raises:
            PermissionDeniedError: GRANT_USED.
            DeadlineExceededError: The time was up.
        """
        if not self._shared:
            return
        claim = Claim(grant=grant.id, remember_s=grant.remember_s)
        if await self._store.take(claim, left_s) is not None:
            raise used_already()

    async def settle(self, taken: Claim, tokens: int | None) -> None:
        """Correct the tokens that were taken to those that were used; None: not known."""
        owed = _owed(taken, tokens)
        if owed is not None:
            await self._store.take(owed, _CORRECTION_S)

    def settle_soon(self, taken: Claim, tokens: int | None) -> None:
        """Correct as `settle` does, while the answer is on its way: nobody waits for it."""
        owed = _owed(taken, tokens)
        if owed is None:
            return
        # An empty context: a correction outlives its call, and must not inherit its deadline.
        task = asyncio.get_running_loop().create_task(
            self._correct(owed), context=contextvars.Context()
        )
        self._corrections.add(task)
        task.add_done_callback(self._corrections.discard)

    async def _correct(self, owed: Claim) -> None:
        try:
            await self._store.take(owed, _CORRECTION_S)
        except ServiceError as error:
            log.warning("an estimate was not corrected", extra={"reason": error.reason})

    async def aclose(self) -> None:
        """Wait a moment for the corrections that are on their way."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CORRECTION_S):
                await asyncio.gather(*self._corrections, return_exceptions=True)

    def _buckets_of(
        self, provider: Provider, model: Model, caller: tuple[str, str]
    ) -> Sequence[Bucket]:
        """Return a caller's buckets of a model: made once, they are the same for each call."""
        name = (id(model), *caller)
        known = self._buckets.get(name)
        if known is not None:
            return known[1]
        if len(self._buckets) >= _MEMORY:
            self._buckets.clear()
        made = _buckets(provider, model, caller)
        self._buckets[name] = model, made  # the model too: while it is kept, its id is its own
        return made


def _owed(taken: Claim, tokens: int | None) -> Claim | None:
    """Return what corrects an estimate, if anything does."""
    if tokens is None:
        return None
    wrong = [
        (bucket, tokens - take)
        for bucket, take in zip(taken.buckets, taken.takes, strict=True)
        if bucket.tokens and tokens != take
    ]
    if not wrong:
        return None
    return Claim([bucket for bucket, _ in wrong], [by for _, by in wrong], guarded=False)


def _limited(
    provider: Provider, model: Model, bucket: Bucket, refusal: Refusal
) -> ResourceExhaustedError:
    scope, whose = "model", "all callers"
    if bucket.caller:
        scope, whose = "caller", "this caller"
    elif refusal.share:
        scope, whose = "share", "this caller's share, while others ask too,"
    what = _TOKENS if bucket.tokens else _REQUESTS
    return ResourceExhaustedError(
        "RATE_LIMITED",
        f"vendor {provider.name}: no more {what} for {whose} in this minute",
        metadata={
            "provider": provider.name,
            "model": model.name,
            "limit": f"{what}_per_minute",
            "scope": scope,
        },
        retry_after=min(refusal.wait_s, _LONGEST_WAIT_S),
    )


def _buckets(provider: Provider, model: Model, caller: tuple[str, str]) -> Sequence[Bucket]:
    who, name = caller
    limits, prefix = model.limits, f"twinpath:limit:{provider.name}/{model.name}"
    weight = limits.weights.get(name, 1.0)
    found = []
    for size, counted in _sizes(limits):
        key, tokens = f"{prefix}:{counted}:", counted == _TOKENS
        sharers = f"{prefix}:callers"
        found.append(
            Bucket(key, size, tokens=tokens, caller=False, weight=weight, who=who, sharers=sharers)
        )
    for size, counted in _sizes(limits.per_caller):
        key, tokens = f"{prefix}:{counted}:of:{who}", counted == _TOKENS
        found.append(Bucket(key, size, tokens=tokens, caller=True))
    return found


def _sizes(share: Share) -> Iterator[tuple[int, str]]:
    if share.requests_per_minute is not None:
        yield share.requests_per_minute, _REQUESTS
    if share.tokens_per_minute is not None:
        yield share.tokens_per_minute, _TOKENS
