"""What Prometheus sees of the log. Counted once a batch, never once a record."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from services.audit.records import kind_name

RECORDS = Counter("twinpath_audit_records_total", "Records made durable, by kind.", ("kind",))
REPEATED = Counter(
    "twinpath_audit_repeated_outcomes_total", "OUTCOMEs refused because another came first."
)
BATCH = Histogram(
    "twinpath_audit_batch_records",
    "Records in one batch: one sync, and one before it for payloads if it has any.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024),
)
SYNC_SECONDS = Histogram(
    "twinpath_audit_sync_seconds",
    "Time to write a batch and its payloads and to sync both.",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0),
)
SIZE = Gauge("twinpath_audit_log_records", "Records in the log.")
SIGNED = Gauge("twinpath_audit_signed_records", "Records that the newest checkpoint covers.")
ABANDONED = Counter("twinpath_audit_abandoned_total", "INTENTs that the reconciler closed.")
WAITING = Gauge("twinpath_audit_waiting_bytes", "Bytes that wait for the disk.")
UNINDEXED = Gauge(
    "twinpath_audit_unindexed_records",
    "Durable records that the index doesn't hold yet; questions wait for them.",
)


@cache
def _records(kind: int) -> Counter:
    return RECORDS.labels(kind_name(kind))


def count_batch(kinds: Sequence[int]) -> None:
    """Count a batch that became durable, by its records' kinds."""
    BATCH.observe(len(kinds))
    for kind in set(kinds):
        _records(kind).inc(kinds.count(kind))
