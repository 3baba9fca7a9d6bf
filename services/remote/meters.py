"""The remote service's own metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from twinpath.common.v1 import decision_pb2

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

ATTEMPTS = Counter(
    "twinpath_remote_attempts_total",
    "Items answered, by vendor, model and reason; the reason of a success is OK.",
    ("provider", "model", "reason"),
)
DURATION = Histogram(
    "twinpath_remote_attempt_duration_seconds",
    "From receipt of an item to its result, for items of which something was sent.",
    ("provider", "model"),
    buckets=_SECONDS,
)
BYTES = Counter(
    "twinpath_remote_bytes_total", "Bytes of bodies.", ("provider", "model", "direction")
)
COST = Counter(
    "twinpath_remote_cost_nanos_usd_total",
    "Cost in billionths of a US dollar, by how it is known.",
    ("provider", "model", "basis"),
)
DRIFT = Counter(
    "twinpath_remote_alias_drift_total",
    "Times that a vendor reported another model version under the same name than before.",
    ("provider", "model"),
)
VENDOR_UP = Gauge("twinpath_remote_vendor_up", "1 while a vendor answers probes.", ("provider",))
TOKEN_EXPIRES = Gauge(
    "twinpath_remote_token_expires_unix_seconds",
    "When our token ends, where that is known; model is empty for the provider's own.",
    ("provider", "model"),
)
REFUSED_CONTENT = Counter(
    "twinpath_remote_refused_content_total",
    "Items refused at the door because a detector found what should not leave.",
    ("provider", "detector"),
)
LIMITS_LOCAL = Counter(
    "twinpath_remote_limits_local_total",
    "Items limited by this replica alone, because the state store did not answer.",
)


@dataclass(frozen=True, slots=True)
class ModelMeters:
    """The metrics of one model at one vendor."""

    duration: Histogram
    bytes_out: Counter
    bytes_in: Counter


# Looking labels up takes longer than counting; the catalog bounds how many there are.
@cache
def of(provider: str, model: str) -> ModelMeters:
    """Return the metrics of a model that the catalog knows."""
    labels = (provider, model)
    return ModelMeters(
        DURATION.labels(*labels), BYTES.labels(*labels, "out"), BYTES.labels(*labels, "in")
    )


@cache
def cost(provider: str, model: str, basis: decision_pb2.CostBasis) -> Counter:
    """Return the counter of cost that is known in one way."""
    name = decision_pb2.CostBasis.Name(basis).removeprefix("COST_BASIS_").lower()
    return COST.labels(provider, model, name)


@cache
def attempts(provider: str, model: str, reason: str) -> Counter:
    """Return the counter of attempts that ended for a reason."""
    return ATTEMPTS.labels(provider, model, reason)
