"""What an item takes of the limits, as values: buckets, claims, and why one was refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Bucket:
    """A minute's worth of something.

    Attributes:
        key: Whose it is.
        size: How much there is in a minute.
        tokens: Whether tokens are counted, not requests.
        caller: Whether it is one caller's.
        weight: The caller's weight among those that share it; 0: it is not shared.
        who: The caller, where it is shared.
        sharers: Where those who share it are noted.
    """

    key: str
    size: int
    tokens: bool
    caller: bool
    weight: float = 0.0
    who: str = ""
    sharers: str = ""

    @property
    def share(self) -> str:
        """The key of this caller's share of it."""
        return f"{self.key}share:{self.who}"


class Claim(NamedTuple):
    """What one item takes.

    Attributes:
        buckets: From where.
        takes: How much of each; a correction may be negative.
        guarded: Whether it is refused where there is no room; a correction is not.
        grant: The id of the grant that it uses up; empty: none.
        remember_s: For how long its use is remembered.
    """

    buckets: Sequence[Bucket] = ()
    takes: Sequence[float] = ()
    guarded: bool = True
    grant: str = ""
    remember_s: float = 0.0

    @property
    def name(self) -> tuple[str, ...]:
        """What one caller's claims on the same buckets have in common."""
        return (*[bucket.key for bucket in self.buckets], self.buckets[-1].who)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was taken.

    Attributes:
        bucket: The one without room; None: the grant has been used already.
        wait_s: Seconds until it has room.
        share: Whether there is room, but not within this caller's share.
    """

    bucket: Bucket | None
    wait_s: float = 0.0
    share: bool = False
