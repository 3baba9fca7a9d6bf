"""One decision on its way through the pipeline: what each step found out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from services.router.assemble import Assembled
from services.router.catalog import Catalog, Task
from services.router.plan import Candidate, Plan
from services.router.ports import FeatureVector
from twinpath.audit.v1 import audit_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import router_pb2

_items = itertools.count(1)


@dataclass(slots=True)
class Decision:
    """What is known so far. Times: `started` and `deadline` monotonic seconds.

    `masked` is what the output policy replaced in the output that was accepted last, `stopped` what
    it refused in any; `model_outputs` the output before values were put back, where some were.
    """

    id: str
    request: router_pb2.InferRequest
    task: Task
    catalog: Catalog
    catalog_stale: bool
    caller: context_pb2.Caller
    entity: dict[str, Any]
    fields: dict[str, Any]
    subject: audit_pb2.Subject
    started: float
    started_unix_us: int
    deadline: float
    trace_id: str = ""
    request_digest: bytes = b""
    vector: FeatureVector | None = None
    assembled: Assembled | None = None
    masked: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    model_outputs: Sequence[tensor_pb2.Tensor] = ()
    plan: Plan | None = None
    data_class: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    lineage: decision_pb2.Lineage | None = None
    plan_message: decision_pb2.Plan | None = None
    answered_by: Candidate | None = None
    fallback: bool = False
    cached: bool = False
    repeated: bool = False
    recorded_arm: str = ""  # of the decision that this one replays

    @property
    def priority(self) -> context_pb2.Priority:
        """The request's priority; unspecified is normal."""
        return self.request.priority or context_pb2.PRIORITY_NORMAL

    @property
    def filters_applied(self) -> tuple[str, ...]:
        """What the task's filters did so far, as records say it."""
        made = self.assembled.filters if self.assembled is not None else ()
        return made + self.masked + self.stopped

    def next_id(self) -> str:
        """Return an id for one item of this decision; copies may ride in one batch."""
        return f"{self.id}.{next(_items)}"

    def context(self, now: float) -> context_pb2.ItemContext:
        """Return the context for an item that this decision sends now."""
        return context_pb2.ItemContext(
            id=self.next_id(),
            time_left_us=max(1, int((self.deadline - now) * 1e6)),
            priority=self.priority,
            caller=self.caller,
        )


def keyed_id(tenant: str, caller: str, task: str, key: str, item: str) -> str:
    """Return the decision id for an idempotency key: a hash, so that every router gives the same.

    Each part is preceded by its length, so that no two different requests share an id.
    """
    total = hashlib.sha256(b"twinpath.decision.v1\x00")
    for part in (tenant, caller, task, key, item):
        raw = part.encode()
        total.update(len(raw).to_bytes(4, "little") + raw)
    return "k" + total.hexdigest()[:40]


def is_keyed(decision_id: str) -> bool:
    """Tell whether a decision id was made from an idempotency key; others are hex digits only."""
    return decision_id.startswith("k")


def digest_of_request(request: router_pb2.InferRequest) -> bytes:
    """Return the SHA-256 of what a request asks; its key and its wish for a plan don't count."""
    bare = router_pb2.InferRequest()
    bare.CopyFrom(request)
    bare.ClearField("idempotency_key")
    bare.ClearField("include_plan")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()
