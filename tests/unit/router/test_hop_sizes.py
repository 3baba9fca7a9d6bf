"""Hops to other services: a batch's message stays within what the other side takes."""

from __future__ import annotations

import asyncio
from typing import Any

from services.chassis.clock import SystemClock
from services.router.clients import AuditClient
from twinpath.audit.v1 import audit_pb2

LIMIT = 64 * 1024


class Log:
    """A channel to a log that remembers the size of each call's message."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def unary_unary(self, method: str, **_: Any) -> Any:
        """Answer appends after a turn of the loop, so that batches form."""

        async def append(request: audit_pb2.AppendRequest, **_: Any) -> audit_pb2.AppendResponse:
            self.sizes.append(request.ByteSize())
            await asyncio.sleep(0.01)
            results = [audit_pb2.AppendResult() for _ in request.entries]
            return audit_pb2.AppendResponse(results=results)

        return append

    unary_stream = unary_unary  # the stub asks for every method; no stream is called here


def entry(number: int, size: int) -> audit_pb2.Entry:
    """An entry with a payload of so many bytes."""
    made = audit_pb2.Entry()
    made.record.decision_id = str(number)
    made.payload.reply = bytes(size)
    return made


async def test_large_entries_do_not_fail_the_small_ones_beside_them() -> None:
    """Together they would be refused as one message that is too large; so they go in several."""
    log: Any = Log()
    client = AuditClient(log, SystemClock(), max_message_bytes=LIMIT)
    entries = [entry(n, LIMIT // 3 if n % 2 else 10) for n in range(40)]
    await asyncio.gather(*(client.append(one) for one in entries))
    assert max(log.sizes) <= LIMIT
    assert len(log.sizes) < len(entries)
