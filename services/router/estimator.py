"""Latency of one candidate, by input size: p50 and p95 that forget.

One histogram for each size class, with buckets of equal ratio (11 % wide), so that any quantile is
within 6 % of the truth from 50 us to 10 minutes. Observations lose half their weight in each
half-life; instead of shrinking all buckets, each new observation weighs more (forward decay,
Cormode et al., ICDE 2009), so observing is O(1) and reading between observations needs no decay.
Memory is fixed. Pure: the clock is passed in.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

SIZE_CLASSES = 8
_LOWEST_S = 50e-6
_HIGHEST_S = 600.0
_RATIO = 1.11
_LOG_RATIO = math.log(_RATIO)
_BUCKETS = math.ceil(math.log(_HIGHEST_S / _LOWEST_S) / _LOG_RATIO) + 1
_RESCALE_AT = 40.0  # half-lives after which weights are made small again: 2^40 keeps floats exact


def size_class(size_bytes: int) -> int:
    """Return the class of a model input of this size: up to 1 KiB, then four times more each."""
    return min(max(0, math.ceil((max(size_bytes, 1) - 1).bit_length() / 2) - 5), SIZE_CLASSES - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """How fast it forgets (seconds), and how much it wants to see before it speaks."""

    half_life_s: float = 15.0
    minimum_count: int = 10
    stale_s: float = 120.0  # unseen for so long, the past says nothing any more
    refresh_s: float = 0.05  # quantiles are computed again at most this often

    def __post_init__(self) -> None:
        """Raise ValueError for an estimator that could never speak or never forget."""
        if min(self.half_life_s, self.stale_s) <= 0 or self.minimum_count < 1 or self.refresh_s < 0:
            raise ValueError("estimator: times must be positive, minimum_count at least 1")


class _Histogram:
    """One size class."""

    __slots__ = ("computed_at", "count", "fresh", "landmark", "last", "p50", "p95", "weights")

    def __init__(self, now: float) -> None:
        self.weights = [0.0] * _BUCKETS
        self.landmark = now
        self.last = now
        self.count = 0
        self.computed_at = -math.inf
        self.fresh = False
        self.p50 = self.p95 = 0.0

    def add(self, now: float, seconds: float, half_life_s: float) -> None:
        age = (now - self.landmark) / half_life_s
        if age > _RESCALE_AT:
            scale = 2.0**-age
            self.weights = [weight * scale for weight in self.weights]
            self.landmark, age = now, 0.0
        self.weights[_bucket(seconds)] += 2.0**age
        self.last = max(self.last, now)
        self.count += 1
        self.fresh = False

    def compute(self, now: float) -> None:
        sums = list(accumulate(self.weights))
        self.p50 = _middle(bisect_left(sums, 0.50 * sums[-1]))
        self.p95 = _middle(bisect_left(sums, 0.95 * sums[-1]))
        self.computed_at, self.fresh = now, True


class LatencyEstimator:
    """One candidate's latencies. Not thread-safe; one event loop owns it."""

    __slots__ = ("_classes", "_config")

    def __init__(self, config: EstimatorConfig | None = None) -> None:
        """Start knowing nothing."""
        self._config = config or EstimatorConfig()
        self._classes: list[_Histogram | None] = [None] * SIZE_CLASSES

    def observe(
        self, now: float, size_class: int, seconds: float, *, censored: bool = False
    ) -> None:
        """Learn from one attempt.

        Observe attempts that timed out too, as censored: leaving them out would make the slowest
        candidate look fast. Leave out those that failed at once.

        Args:
            now: the end of the attempt.
            size_class: from `size_class`; others are clamped to the nearest.
            seconds: how long it took; negative or not a number is ignored.
            censored: it was given up after `seconds`, and would have taken longer. Below the p95
                that says nothing and is ignored: callers in a hurry don't make a candidate fast.
        """
        if not 0 <= seconds < math.inf:
            return
        if censored and seconds < (self.p95(now, size_class) or 0.0):
            return
        index = _clamp(size_class)
        histogram = self._classes[index]
        if histogram is None or now - histogram.last > self._config.stale_s:
            histogram = self._classes[index] = _Histogram(now)
        histogram.add(now, seconds, self._config.half_life_s)

    def p50(self, now: float, size_class: int) -> float | None:
        """Return the median in seconds, None while too little is known."""
        histogram = self._known(now, size_class)
        return None if histogram is None else histogram.p50

    def p95(self, now: float, size_class: int) -> float | None:
        """Return the 95th percentile in seconds, None while too little is known."""
        histogram = self._known(now, size_class)
        return None if histogram is None else histogram.p95

    def hedge_delay(
        self,
        now: float,
        size_class: int,
        *,
        time_left_s: float,
        other_p50_s: float | None,
        floor_s: float = 0.005,
    ) -> float | None:
        """Return after how many seconds of silence to ask another candidate, None for never.

        That is this candidate's p95, so that one call in twenty is asked twice. None while the p95
        or the other's median is unknown, and where the other could not answer in the time left.
        """
        p95 = self.p95(now, size_class)
        if p95 is None or other_p50_s is None:
            return None
        delay = max(p95, floor_s)
        return delay if delay + other_p50_s < time_left_s else None

    def _known(self, now: float, size_class: int) -> _Histogram | None:
        config = self._config
        histogram = self._classes[_clamp(size_class)]
        if histogram is None or histogram.count < config.minimum_count:
            return None
        if now - histogram.last > config.stale_s:
            return None
        if not histogram.fresh and not (0 <= now - histogram.computed_at < config.refresh_s):
            histogram.compute(now)
        return histogram


def _clamp(size_class: int) -> int:
    return min(max(size_class, 0), SIZE_CLASSES - 1)


def _bucket(seconds: float) -> int:
    if seconds <= _LOWEST_S:
        return 0
    return min(math.ceil(math.log(seconds / _LOWEST_S) / _LOG_RATIO), _BUCKETS - 1)


def _middle(bucket: int) -> float:
    """The geometric middle of a bucket in seconds."""
    return _LOWEST_S * math.pow(_RATIO, min(bucket, _BUCKETS - 1) - 0.5)
