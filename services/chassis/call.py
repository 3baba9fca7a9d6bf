"""What is known about the call that is being served: who, until when, which method."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

from services.chassis.errors import DeadlineExceededError


@lru_cache(maxsize=1024)
def _names(subject: str, roles: frozenset[str]) -> frozenset[str]:
    return frozenset({subject, *(f"role:{role}" for role in roles)})


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls, as it was verified.

    `subject` is "service:<name>" for services of the mesh, else the caller's own name. `roles`
    are what the access table speaks of.
    """

    subject: str
    tenant: str = ""
    roles: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The names under which the access table may list this identity."""
        return _names(self.subject, self.roles)


@dataclass(frozen=True, slots=True)
class Call:
    """The call that is being served. `deadline` is on time.monotonic()'s scale, in seconds."""

    method: str
    identity: Identity
    deadline: float

    def time_left(self) -> float:
        """Return the seconds left; not above zero once the time is up."""
        return self.deadline - time.monotonic()

    def check_deadline(self) -> None:
        """Raise DeadlineExceededError once the time is up."""
        if self.time_left() <= 0:
            raise DeadlineExceededError("DEADLINE_EXCEEDED", "the caller's time is up")


_current: ContextVar[Call | None] = ContextVar("twinpath_call", default=None)


def current() -> Call | None:
    """Return the call that is being served by this task, if any."""
    return _current.get()


def enter(call: Call | None) -> None:
    """Make this the current call of the running task."""
    _current.set(call)
