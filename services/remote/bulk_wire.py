"""What vendors' batch APIs have in common, as far as a job needs it. No I/O, no vendor's words.

Each request of a batch holds a body exactly as a single call would send it, byte for byte, so that
its digest in the record is that of what left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from services.remote.wire import AnswerError, Body, Reply, dig, load_object

Requests = Sequence[tuple[str, Body]]
"""Each request of a batch under its name."""


class Missing(Enum):
    """Why a request of a batch has no answer."""

    EXPIRED = "expired"
    CANCELLED = "cancelled"


class State(Enum):
    """How far a batch is."""

    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch as the vendor describes it.

    Attributes:
        state: How far it is.
        fetch: What to ask for its answers.
        missing: Why a request without an answer has none, where its own line does not say.
    """

    state: State
    fetch: Sequence[Body] = ()
    missing: Missing = Missing.EXPIRED


@dataclass(frozen=True, slots=True)
class Suspect:
    """A batch that may be a job's.

    Attributes:
        id: The vendor's id.
        certain: It is the job's.
        fetch: What to ask to find out, where that is not certain; None: it can't be known yet.
    """

    id: str
    certain: bool = False
    fetch: Body | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a vendor's batches: those that may be a job's, and where the next page begins.

    `after` is empty where this was the last page that can hold it.
    """

    suspects: Sequence[Suspect]
    after: str


class BatchApi(Protocol):
    """One vendor's batches. What it reads raises AnswerError where it breaks the protocol."""

    def upload(self, requests: Requests, base_path: str) -> Body | None:
        """Write the file that a batch is made from; None: requests go with the batch itself.

        `base_path` is what stands before each request's own path.
        """

    def create(self, job: str, requests: Requests, file: str, endpoint: str) -> Body:
        """Write the request for a batch, from the vendor's file or from the requests."""

    def look(self, batch: str) -> Body:
        """Write the question how far a batch is."""

    def cancel(self, batch: str) -> Body:
        """Write the request to end a batch."""

    def newest(self, after: str = "") -> Body:
        """Write the question for a page of batches, the newest first."""

    def page(self, content: bytes, job: str, requests: int, since: float) -> Page:
        """Read a page; the job has so many requests, and was begun at `since` (Unix seconds)."""

    def seen(self, content: bytes) -> Seen:
        """Read how far a batch is."""

    def erase(self, content: bytes, file: str) -> Sequence[Body]:
        """Write the requests that delete inputs and answers at the vendor.

        `content` is the batch as the vendor describes it, empty if there is none; `file` is the one
        that it was made from, empty if there is none.
        """

    def answers(self, content: bytes) -> Mapping[str, Reply | Missing | None]:
        """Read answers by their requests' names; None: there is none, as `Seen.missing` says."""


def name_of(job: str, number: int) -> str:
    """Return a request's name: the job's mark and its number, in what every vendor takes."""
    return f"{mark_of(job)}-{number}"


def mark_of(job: str) -> str:
    """Return what the names of a job's requests begin with."""
    return hashlib.sha256(job.encode()).hexdigest()[:24]


def by_custom_id(
    lines: bytes, answer: Callable[[dict[str, Any]], Reply | Missing | None]
) -> dict[str, Reply | Missing | None]:
    """Read a vendor's JSON lines, one for each request: its name, and what `answer` makes of it.

    Raises:
        AnswerError: a line breaks the protocol, or answers a request for the second time.
    """
    found: dict[str, Reply | Missing | None] = {}
    for line in lines.splitlines():
        if not line.strip():
            continue
        document = load_object(line)
        name = dig(document, "custom_id", kind=str)
        if name in found:
            raise AnswerError("custom_id")
        found[name] = answer(document)
    return found
