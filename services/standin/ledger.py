"""What the stand-in vendor has received: counters, and a bounded log of bodies."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

CLIENT_GONE = 499  # no answer was possible: the caller left, or the fault was to say nothing
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})


def plain(amount: Decimal) -> str:
    """An amount without exponent and without zeros that say nothing."""
    return format(amount.normalize() if amount else Decimal(0), "f")


@dataclass(slots=True)
class Entry:
    """One request that arrived.

    Attributes:
        sequence: Counts all requests from 1.
        time_unix_s: When it arrived.
        method: HTTP method.
        path: HTTP path.
        headers: Its headers; credentials are replaced by `***`.
        body: What it held, whole.
        model: The model that it named, if it named one.
        status: The status it was answered with; 0 while it is open, 499: nothing was answered.
        fault: Kind of the fault that it met, if any.
        cost_usd: What it was billed.
    """

    sequence: int
    time_unix_s: float
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    model: str | None = None
    status: int = 0
    fault: str | None = None
    cost_usd: Decimal = Decimal(0)

    def as_json(self) -> dict[str, Any]:
        """As the admin endpoint shows it; the body in base64, with its SHA-256."""
        return {
            "sequence": self.sequence,
            "time_unix_s": self.time_unix_s,
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "model": self.model,
            "status": self.status,
            "fault": self.fault,
            "cost_usd": plain(self.cost_usd),
            "body_size": len(self.body),
            "body_sha256": hashlib.sha256(self.body).hexdigest(),
            "body_base64": base64.b64encode(self.body).decode(),
        }


@dataclass(slots=True)
class Ledger:
    """Counts every request on the public port, and keeps the newest within two bounds.

    Attributes:
        max_entries: Requests kept.
        max_bytes: Bytes of bodies kept.
    """

    max_entries: int
    max_bytes: int
    received: int = 0
    posts: int = 0
    inferences: int = 0
    body_bytes: int = 0
    answer_bytes: int = 0
    billed_usd: Decimal = Decimal(0)
    by_status: Counter[int] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)
    _log: deque[Entry] = field(default_factory=deque)
    _log_bytes: int = 0

    def arrive(self, now: float, method: str, path: str, headers: Mapping[str, str]) -> Entry:
        """Count a request, before anything else is done with it."""
        self.received += 1
        self.posts += method == "POST"
        shown = {k: "***" if k.lower() in _SECRET_HEADERS else v for k, v in headers.items()}
        return Entry(self.received, now, method, path, shown)

    def keep(self, entry: Entry, body: bytes) -> None:
        """Keep an arrived request with its body; the oldest make room."""
        entry.body = body
        self.body_bytes += len(body)
        self._log.append(entry)
        self._log_bytes += len(body)
        while len(self._log) > self.max_entries or self._log_bytes > self.max_bytes:
            self._log_bytes -= len(self._log.popleft().body)

    def finish(self, entry: Entry, status: int, answer_bytes: int) -> None:
        """Count how a request ended."""
        entry.status = status
        self.answer_bytes += answer_bytes
        self.by_status[status] += 1
        self.billed_usd += entry.cost_usd
        if entry.model is not None:
            self.inferences += 1
            self.by_model[entry.model] += 1
        if entry.fault is not None:
            self.by_fault[entry.fault] += 1

    def counters(self) -> dict[str, Any]:
        """All counters.

        `received` (all requests, probes too) and `posts` (those that can carry data: the one to
        show that nothing was sent) count on arrival, the others when a request has ended.
        """
        return {
            "received": self.received,
            "posts": self.posts,
            "inferences": self.inferences,
            "body_bytes": self.body_bytes,
            "answer_bytes": self.answer_bytes,
            "billed_usd": plain(self.billed_usd),
            "by_status": {str(status): count for status, count in self.by_status.items()},
            "by_model": dict(self.by_model),
            "by_fault": dict(self.by_fault),
        }

    def entries(self, limit: int) -> list[Entry]:
        """The newest kept requests, oldest first."""
        return list(self._log)[max(0, len(self._log) - limit) :]

    def emptied(self) -> Ledger:
        """A new ledger with the same bounds, for a start from nothing."""
        return Ledger(self.max_entries, self.max_bytes)
