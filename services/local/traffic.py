"""Which model versions take requests, and how many each of them is working on. Pure.

Without explicit control every version that is ready on a replica takes requests, and the newest
one those that name none. Under explicit control a version takes none on a replica until it has
answered a warm-up there, and none at all while it is drained.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

Key = tuple[str, str]


class Traffic:
    """The state of every version's traffic in this process."""

    def __init__(self, *, explicit: bool = False) -> None:
        self.explicit = explicit
        self._warm: dict[str, set[Key]] = {}  # by replica
        self._draining: set[Key] = set()
        self._serving: dict[str, str] = {}
        self._busy: Counter[Key] = Counter()
        self._idle: dict[Key, asyncio.Event] = {}

    def admitted(self, replica: str, ready: Collection[Key]) -> frozenset[Key]:
        """Return which of the versions that are ready on a replica may be asked there.

        One that is not ready any more has to be warmed up again when it comes back.
        """
        if not self.explicit:
            return frozenset(ready)
        warm = self._warm.setdefault(replica, set())
        warm.intersection_update(ready)
        return frozenset(warm)

    def is_warm(self, replica: str, key: Key) -> bool:
        """Tell whether a version has answered a warm-up on a replica."""
        return key in self._warm.get(replica, ())

    def warmed(self, replica: str, key: Key) -> None:
        """Note that it has."""
        self._warm.setdefault(replica, set()).add(key)

    def cooled(self, replica: str, key: Key) -> None:
        """Note that it must be warmed up anew."""
        self._warm.get(replica, set()).discard(key)

    def serving(self, name: str) -> str:
        """Return the version that answers requests which name none; empty: the newest."""
        return self._serving.get(name, "")

    def serve(self, name: str, version: str) -> None:
        """Let a version answer them; empty: the newest."""
        if version:
            self._serving[name] = version
        else:
            self._serving.pop(name, None)

    def takes(self, key: Key) -> bool:
        """Tell whether a version takes new requests, as far as this object knows."""
        return key not in self._draining

    def enter(self, key: Key) -> None:
        """A request for a version was accepted."""
        self._busy[key] += 1

    def leave(self, key: Key) -> None:
        """Such a request has ended."""
        self._busy[key] -= 1
        if not self._busy[key]:
            del self._busy[key]
            if key in self._idle:
                self._idle[key].set()

    def busy(self, key: Key) -> int:
        """Return the requests of a version that have not ended."""
        return self._busy[key]

    async def drain(self, key: Key, timeout: float) -> int:
        """Take no new requests for a version, and wait for those that it has.

        Returns:
            How many had not ended after `timeout` seconds. New ones stay refused until `reopen`.
        """
        self._draining.add(key)
        if self._busy[key]:
            idle = self._idle[key] = asyncio.Event()
            try:
                async with asyncio.timeout(timeout):
                    await idle.wait()
            except TimeoutError:
                pass
            finally:
                del self._idle[key]
        return self._busy[key]

    def reopen(self, key: Key) -> None:
        """End a drain."""
        self._draining.discard(key)
