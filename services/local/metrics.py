"""The local path's own metrics, and Triton's counters beside them, so that both can be joined."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from services.local.usage import Counters, Price

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

BATCHED = Histogram(
    "twinpath_local_batched_items",
    "Items that shared a request to Triton, by model; those that went alone are not here.",
    ("model",),
    buckets=(2, 4, 8, 16, 32, 64, 128, 256),
)
SHARED = Counter(
    "twinpath_local_shared_memory_bytes_total",
    "Bytes of tensors that went to Triton through shared memory.",
)
REPLICA_UP = Gauge("twinpath_local_replica_up", "1 while a replica answers pings.", ("replica",))


class Ended:
    """Counts and times items. Many at once cost as much as one; the event loop alone counts."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], int] = {}
        self._times: dict[str, list[float]] = {}  # by model: the buckets, then the sum

    def note(self, model: str, version: str, reason: str, seconds: float, items: int) -> None:
        """Note that so many items ended after so long; the reason of a success is empty."""
        key = (model, version, reason)
        self._counts[key] = self._counts.get(key, 0) + items
        if not model:
            return
        times = self._times.get(model)
        if times is None:
            times = self._times[model] = [0.0] * (len(_SECONDS) + 2)
        times[bisect_left(_SECONDS, seconds)] += items
        times[-1] += seconds * items

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as of now. Called from the thread that serves /metrics."""
        items = CounterMetricFamily(
            "twinpath_local_items",
            "Items answered, by model, version and reason; the reason of a success is empty.",
            labels=("model", "version", "reason"),
        )
        for key, ended in list(self._counts.items()):
            items.add_metric(key, ended)
        yield items
        seconds = HistogramMetricFamily(
            "twinpath_local_item_duration_seconds",
            "Time from receipt of an item to its result, by model.",
            labels=("model",),
        )
        for model, times in list(self._times.items()):
            total = 0.0
            buckets = []
            for bound, count in zip((*map(str, _SECONDS), "+Inf"), times, strict=False):
                total += count
                buckets.append((bound, total))
            seconds.add_metric((model,), buckets, times[-1])
        yield seconds


ENDED = Ended()
REGISTRY.register(ENDED)  # type: ignore[arg-type]


class TritonCounters:
    """Triton's own counters of each model, and what they cost, beside our own metrics."""

    def __init__(
        self, read: Callable[[], Iterable[tuple[str, str, Counters]]], price: Price
    ) -> None:
        self._read = read
        self._price = price

    def describe(self) -> list[Metric]:
        """Return the metrics without samples."""
        return list(self._families().values())

    def _families(self) -> dict[str, CounterMetricFamily]:
        texts = {
            "requests": "Requests that Triton answered.",
            "rows": "Rows of those requests.",
            "queue_seconds": "Time that they waited in Triton's queue.",
            "compute_seconds": "Time that each one's batch was computed for, summed over requests.",
            "busy_seconds": "Time for which an instance was busy: the machine's share of time.",
        }
        if self._price.usd_per_hour:
            texts["cost_usd"] = "The machine's price for that share of its time."
        if self._price.watts:
            texts["energy_joules"] = "An estimate: the machine's power in that share of its time."
        return {
            name: CounterMetricFamily(
                f"twinpath_local_triton_{name}",
                f"{text} By Triton's own counters since the model was loaded.",
                labels=("model", "version"),
            )
            for name, text in texts.items()
        }

    def collect(self) -> list[Metric]:
        """Return the metrics as of Triton's last answer. Called from the thread of /metrics."""
        families = self._families()
        for model, version, counters in self._read():
            busy_s = counters.busy_ns / 1e9
            values = {
                "requests": counters.requests,
                "rows": counters.rows,
                "queue_seconds": counters.queue_ns / 1e9,
                "compute_seconds": counters.compute_ns / 1e9,
                "busy_seconds": busy_s,
                "cost_usd": self._price.usd(busy_s),
                "energy_joules": self._price.joules(busy_s),
            }
            for name, family in families.items():
                family.add_metric((model, version), values[name])
        return list(families.values())
