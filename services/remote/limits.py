"""How much may be asked of a model in a minute: in all, and by one caller; over all replicas.

Tokens are estimated before and corrected after; a bucket may go below zero then, which the next
ones wait for. In the same step an item's grant is used up: see limit_store.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Sequence

from services.chassis.errors import ResourceExhaustedError, ServiceError
from services.remote.catalog import Model, Provider
from services.remote.grants import GrantUse, used_already
from services.remote.limit_store import Bucket, Claim, Refusal, Store

_LONGEST_WAIT_S = 60.0
_CORRECTION_S = 1.0
_NO_TIME_LIMIT_S = 3600.0
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

    async def acquire(
        self,
        provider: Provider,
        model: Model,
        caller: tuple[str, str],
        tokens: int,
        *,
        grant: GrantUse | None = None,
        left_s: float = _NO_TIME_LIMIT_S,
    ) -> Sequence[Bucket]:
        """Take one request and about so many tokens, and use the grant up; or take nothing.

        Args:
            provider: Of the model.
            model: Whose limits.
            caller: A key for the caller, and its name in the catalog's weights.
            tokens: About how many tokens the item takes.
            grant: What the item's grant permits once, over all replicas.
            left_s: Seconds that this may take.

        Returns:
            What was taken of the buckets.

        Raises:
            ResourceExhaustedError: RATE_LIMITED, with what is limited and how long to wait.
            PermissionDeniedError: GRANT_USED.
            DeadlineExceededError: The time was up.
        """
        buckets = _buckets(provider, model, caller, tokens)
        remembered = grant if self._shared else None
        if not buckets and remembered is None:
            return buckets
        claim = Claim(buckets)
        if remembered is not None:
            claim = Claim(buckets, grant=remembered.id, remember_s=remembered.remember_s)
        refusal = await self._store.take(claim, left_s)
        if refusal is None:
            return buckets
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
        claim = Claim((), grant=grant.id, remember_s=grant.remember_s)
        if await self._store.take(claim, left_s) is not None:
            raise used_already()

    async def settle(self, taken: Sequence[Bucket], tokens: int | None) -> None:
        """Correct the tokens that were taken to those that were used; None: not known."""
        if tokens is None:
            return
        buckets = [
            Bucket(b.key, b.size, tokens - b.take, tokens=True, caller=b.caller,
                   weight=b.weight, who=b.who, sharers=b.sharers)
            for b in taken
            if b.tokens and tokens != b.take
        ]  # fmt: skip
        if buckets:
            await self._store.take(Claim(buckets, guarded=False), _CORRECTION_S)

    def settle_soon(self, taken: Sequence[Bucket], tokens: int | None) -> None:
        """Correct as `settle` does, while the answer is on its way: nobody waits for it."""
        if tokens is None or not any(b.tokens and tokens != b.take for b in taken):
            return
        # An empty context: a correction outlives its call, and must not inherit its deadline.
        task = asyncio.get_running_loop().create_task(
            self._settle_quietly(taken, tokens), context=contextvars.Context()
        )
        self._corrections.add(task)
        task.add_done_callback(self._corrections.discard)

    async def _settle_quietly(self, taken: Sequence[Bucket], tokens: int) -> None:
        try:
            await self.settle(taken, tokens)
        except ServiceError as error:
            log.warning("an estimate was not corrected", extra={"reason": error.reason})

    async def aclose(self) -> None:
        """Wait a moment for the corrections that are on their way."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CORRECTION_S):
                await asyncio.gather(*self._corrections, return_exceptions=True)


def _limited(
    provider: Provider, model: Model, bucket: Bucket, refusal: Refusal
) -> ResourceExhaustedError:
    scope, whose = "model", "all callers"
    if bucket.caller:
        scope, whose = "caller", "this caller"
    elif refusal.share:
        scope, whose = "share", "this caller's share, while others ask too,"
    what = "tokens" if bucket.tokens else "requests"
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


def _buckets(
    provider: Provider, model: Model, caller: tuple[str, str], tokens: int
) -> list[Bucket]:
    limits = model.limits
    who, name = caller
    prefix = f"twinpath:limit:{provider.name}/{model.name}"
    found = []
    weight = limits.weights.get(name, 1.0)
    for size, counted, take in (
        (limits.requests_per_minute, "requests", 1),
        (limits.tokens_per_minute, "tokens", tokens),
    ):
        if size is not None:
            found.append(
                Bucket(f"{prefix}:{counted}:", size, take, tokens=counted == "tokens",
                       caller=False, weight=weight, who=who, sharers=f"{prefix}:callers")
            )  # fmt: skip
    own = limits.per_caller
    for size, counted, take in (
        (own.requests_per_minute, "requests", 1),
        (own.tokens_per_minute, "tokens", tokens),
    ):
        if size is not None:
            key = f"{prefix}:{counted}:of:{who}"
            found.append(Bucket(key, size, take, tokens=counted == "tokens", caller=True))
    return found
