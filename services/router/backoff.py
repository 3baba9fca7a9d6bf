"""When to try again: full jitter, the server's word respected, never past the time left.

Full jitter draws each wait from all of 0..cap, so that callers that failed together don't come
back together; of the kinds compared in "Exponential Backoff And Jitter" (AWS Architecture Blog,
M. Brooker, 2015) it does the least work. Pure: the random number is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffConfig:
    """Bounds of the wait before a retry, in seconds."""

    base_s: float = 0.02
    cap_s: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError unless 0 < base_s <= cap_s."""
        if not 0 < self.base_s <= self.cap_s:
            raise ValueError("backoff: 0 < base_s <= cap_s")


def retry_delay(
    config: BackoffConfig,
    retry: int,
    random: Callable[[], float],
    *,
    time_left_s: float,
    needed_s: float = 0.0,
    pushback_s: float | None = None,
) -> float | None:
    """Return how long to wait before a retry, or None if there must be none.

    Args:
        config: bounds of the wait.
        retry: 0 for the first retry, 1 for the second, ...
        random: uniform over 0 <= x < 1.
        time_left_s: until the request's deadline.
        needed_s: what an attempt is expected to take; a retry that can't finish is not begun.
        pushback_s: what the server asked for (Retry-After, RetryInfo, grpc-retry-pushback-ms).
            The wait is at least that, and jitter comes on top, since every caller was told the
            same. Negative or not a number: the server wants no retry (gRFC A6).
    """
    ceiling = min(config.cap_s, config.base_s * 2.0 ** min(retry, 62))
    delay = random() * ceiling
    if pushback_s is not None:
        if not pushback_s >= 0 or math.isinf(pushback_s):
            return None
        delay += pushback_s
    return delay if delay + needed_s < time_left_s else None
