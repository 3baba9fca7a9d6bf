"""How sure a sample makes us of a share. Pure.

The Wilson score interval: unlike the textbook's normal interval it stays within 0..1, and says
something true of small samples and of shares near the ends, which is where agreement lives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist


class Verdict(StrEnum):
    """What a sample says about a required share."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Share:
    """`agreeing` of `size`, and between which shares the truth lies with `confidence`."""

    agreeing: int
    size: int
    confidence: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share in the sample; NaN of an empty one."""
        return self.agreeing / self.size if self.size else math.nan


def share(agreeing: int, size: int, confidence: float = 0.95) -> Share:
    """Return a share with its Wilson interval; an empty sample says 0 to 1.

    Raises:
        ValueError: the numbers make no share.
    """
    if not 0 <= agreeing <= size or not 0 < confidence < 1:
        raise ValueError(f"{agreeing} of {size} with confidence {confidence}")
    if not size:
        return Share(0, 0, confidence, 0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, z2 = agreeing / size, z * z
    middle = (p + z2 / (2 * size)) / (1 + z2 / size)
    half = z / (1 + z2 / size) * math.sqrt(p * (1 - p) / size + z2 / (4 * size * size))
    # At the ends the interval's own end is exact; rounding must not move it.
    low = 0.0 if agreeing == 0 else max(0.0, middle - half)
    high = 1.0 if agreeing == size else min(1.0, middle + half)
    return Share(agreeing, size, confidence, low, high)


def verdict(found: Share, required: float) -> Verdict:
    """Return what the interval says of a required share; undecided if it holds both answers."""
    if found.low >= required:
        return Verdict.HOLDS
    return Verdict.FAILS if found.high < required else Verdict.UNDECIDED


def needed(required: float, confidence: float = 0.95) -> int:
    """Return the least size of a sample that can show a required share: if all of it agrees.

    Raises:
        ValueError: no sample can; the share is not within 0..1, or is 1.
    """
    if not 0 <= required < 1:
        raise ValueError(f"no sample can show a share of {required}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return max(1, math.ceil(z * z * required / (1 - required) - 1e-9))
