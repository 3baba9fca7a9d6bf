"""When a failed call may be made again, and after how long. Pure.

A call may have been worked on although its answer got lost, so without an idempotency key it is
made again only after an error that says that nothing was begun. With a key, a second call gets
the first one's decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from twinpath.client.errors import TwinpathError

# The mesh's own word that the request was not worked on: it was refused at the door, or before
# any model was asked and anything recorded.
NOT_WORKED_ON = frozenset(
    {"OVERLOADED", "QUOTA_EXCEEDED", "RATE_LIMITED", "NO_CANDIDATE", "FEATURES_UNREACHABLE"}
)
_WITH_KEY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)
_REFUSALS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how patiently. `RetryPolicy(attempts=1)` never repeats a call.

    Attributes:
        attempts: Calls in all, the first one included.
        base_s: Upper bound of the first wait, in seconds; it doubles with each.
        max_s: Bound of every wait.
    """

    attempts: int = 3
    base_s: float = 0.05
    max_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base_s < 0 or self.max_s < 0:
            raise ValueError("attempts are 1 or more, waits are not negative")


def may_repeat(error: TwinpathError, *, keyed: bool) -> bool:
    """Tell whether a call that failed with this error can be made again without harm."""
    if keyed:
        # A message that is too large is RESOURCE_EXHAUSTED, too, and stays too large.
        return error.code in _WITH_KEY and (
            error.described or error.code is grpc.StatusCode.UNAVAILABLE
        )
    return error.code in _REFUSALS and error.reason in NOT_WORKED_ON


def delay(
    policy: RetryPolicy,
    made: int,
    error: TwinpathError,
    *,
    keyed: bool,
    time_left_s: float,
    random: Callable[[], float],
) -> float | None:
    """Return the seconds to wait before the next call; None: don't make it.

    Full jitter: anything from nothing to the bound, so that clients that failed together don't
    come back together. What the mesh asked for by RetryInfo is waited out first.

    Args:
        policy: The limits.
        made: Calls made so far.
        error: How the last one failed.
        keyed: Whether it has an idempotency key.
        time_left_s: Seconds to the caller's deadline.
        random: Gives numbers of [0, 1).
    """
    if made >= policy.attempts or not may_repeat(error, keyed=keyed):
        return None
    # The exponent is bounded: a float does not hold every power of two.
    bound = min(policy.max_s, policy.base_s * 2.0 ** min(made - 1, 60))
    wait = max(0.0, error.retry_after or 0.0) + bound * random()
    return wait if wait < time_left_s else None
