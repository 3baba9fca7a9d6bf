"""The local path's own metrics; Triton's stand on Triton's own endpoint."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

ITEMS = Counter(
    "twinpath_local_items_total",
    "Items answered, by model, version and reason; the reason of a success is empty.",
    ("model", "version", "reason"),
)
SECONDS = Histogram(
    "twinpath_local_item_duration_seconds",
    "Time from receipt of an item to its result, by model.",
    ("model",),
    buckets=_SECONDS,
)
BATCHED = Histogram(
    "twinpath_local_batched_items",
    "Items that shared a request to Triton, by model; those that went alone are not here.",
    ("model",),
    buckets=(2, 4, 8, 16, 32, 64, 128, 256),
)
REPLICA_UP = Gauge("twinpath_local_replica_up", "1 while a replica answers pings.", ("replica",))
