"""What the router needs of the world, as small interfaces.

Each has a gRPC client in clients.py and a fake in the tests. All speak the contract's messages,
one item at a time; a client may let items ride together, and nobody here would notice.
Every method raises ServiceError and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twinpath.audit.v1 import audit_pb2
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import bulk_pb2, inference_pb2


@dataclass(frozen=True, slots=True)
class FeatureQuery:
    """One row to read. `entity` and `fields` are plain Python values; None is a null."""

    feature_service: str
    context: context_pb2.ItemContext
    entity: dict[str, Any]
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FeatureVector:
    """The features of one row, by `view__feature`.

    `statuses` are the contract's FeatureStatus numbers; `event_times` are microseconds since
    1970-01-01 UTC, 0 for none; `views` are (view, version hash, event time).
    """

    values: dict[str, Any]
    statuses: dict[str, int]
    data_class: int
    feature_service: str
    registry_version: str
    views: tuple[tuple[str, str, int], ...] = ()
    field_names: frozenset[str] = field(default_factory=frozenset)


class Features(Protocol):
    """Reads feature vectors."""

    async def get(self, query: FeatureQuery) -> FeatureVector:
        """Return the vector of one row; raises what the row's status says."""
        ...


class Inference(Protocol):
    """Asks models on one path. The router can't tell what is behind it."""

    async def infer(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        """Return the item's result, failed ones too; raises only if the call itself failed."""
        ...

    def infer_stream(
        self, item: inference_pb2.InferItem
    ) -> AsyncGenerator[inference_pb2.InferStreamResponse]:
        """Yield chunks, then the final message. Closing it cancels the model's work."""
        ...

    async def describe(self) -> list[inference_pb2.ModelDescription]:
        """Return every model that the path knows."""
        ...


class Bulk(Protocol):
    """Asks a vendor for many answers at once, for later. The job's id makes calls idempotent."""

    async def submit(
        self, job_id: str, items: Sequence[inference_pb2.InferItem]
    ) -> bulk_pb2.BulkJob:
        """Send items as one batch; the same id again sends nothing."""
        ...

    async def get(self, job_id: str) -> bulk_pb2.BulkJob:
        """Return how far a batch is, with its results once it is done."""
        ...

    async def cancel(self, job_id: str) -> bulk_pb2.BulkJob:
        """End a batch."""
        ...

    async def forget(self, job_id: str) -> None:
        """Delete what the vendor keeps of a batch."""
        ...


class Audit(Protocol):
    """Appends to the log and reads back."""

    async def append(self, entry: audit_pb2.Entry) -> audit_pb2.AppendResult:
        """Make an entry durable; the result is OK or ALREADY_EXISTS, anything else is raised."""
        ...

    async def get(self, decision_id: str, *, payload: bool) -> list[audit_pb2.StoredRecord]:
        """Return the records of a decision, oldest first; none: an empty list."""
        ...


class Claims(Protocol):
    """Shortens the wait of concurrent copies of one request; the log is the arbiter."""

    async def take(self, decision_id: str, ttl_s: float) -> bool:
        """Return True if this copy may go ahead."""
        ...

    async def release(self, decision_id: str) -> None:
        """Let another copy go ahead."""
        ...
