"""Twinpath for other teams: ask for a decision, get plain Python values back.

    from pathlib import Path
    from twinpath.client import Client

    with Client("127.0.0.1:7070", token=Path("caller.token")) as client:
        decision = client.infer("diabetes_progression", entity={"patient_id": 17})
        print(decision["progression"], decision.path, decision.decision_id)

`AsyncClient` is the same with `await` and `async with`. Both have deadlines by default, repeat a
call only where that can't ask a model twice, pass the caller's trace on, and raise the errors of
`twinpath.client.errors` with the reason that the mesh gave.

Importing this pulls in grpcio and protobuf, nothing else; NumPy and OpenTelemetry are used only
by programs that use them already.
"""

from __future__ import annotations

from twinpath.client.aio import AsyncClient, AsyncStream
from twinpath.client.connection import Tls
from twinpath.client.errors import StreamCutError, TwinpathError, Violation
from twinpath.client.keys import key_of, new_key
from twinpath.client.replies import BatchItem, Candidate, Chunk, Cost, Decision, Explanation
from twinpath.client.request import Ask, Request
from twinpath.client.retry import RetryPolicy
from twinpath.client.sync import Client, Stream
from twinpath.client.tensors import Tensor

__all__ = [
    "Ask",
    "AsyncClient",
    "AsyncStream",
    "BatchItem",
    "Candidate",
    "Chunk",
    "Client",
    "Cost",
    "Decision",
    "Explanation",
    "Request",
    "RetryPolicy",
    "Stream",
    "StreamCutError",
    "Tensor",
    "Tls",
    "TwinpathError",
    "Violation",
    "key_of",
    "new_key",
]
