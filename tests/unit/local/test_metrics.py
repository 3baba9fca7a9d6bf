"""The local path's metrics: items counted as Prometheus counts, and Triton's counters priced."""

from __future__ import annotations

from services.local.metrics import Ended, TritonCounters
from services.local.usage import Counters, Price


def test_many_items_at_once_count_like_one_by_one() -> None:
    """Buckets are cumulative, the sum is of all; unknown models are counted, not timed."""
    ended = Ended()
    ended.note("m", "1", "", 0.003, 64)
    ended.note("m", "1", "", 99.0, 1)
    ended.note("m", "1", "MODEL_FAILED", 0.0005, 1)
    ended.note("", "", "MODEL_UNKNOWN", 0.1, 2)
    items, seconds = ended.collect()
    counted = {tuple(s.labels.values()): s.value for s in items.samples}
    assert counted == {
        ("m", "1", ""): 65,
        ("m", "1", "MODEL_FAILED"): 1,
        ("", "", "MODEL_UNKNOWN"): 2,
    }
    found = {(s.name.rpartition("_")[2], s.labels.get("le")): s.value for s in seconds.samples}
    assert found["bucket", "0.0005"] == 1
    assert found["bucket", "0.002"] == 1
    assert found["bucket", "0.005"] == 65
    assert found["bucket", "10.0"] == 65
    assert found["bucket", "+Inf"] == found["count", None] == 66
    assert abs(found["sum", None] - (64 * 0.003 + 99.0 + 0.0005)) < 1e-9


def test_cost_and_energy_are_the_machines_share_of_time() -> None:
    """Half an hour of one of two slots at 0.10 USD an hour and 60 W; without figures they are absent."""
    counters = Counters(10, 20, 5 * 10**9, 7 * 10**9, 1800 * 10**9)
    shown = TritonCounters(lambda: [("m", "1", counters)], Price(0.1, 2, 60.0)).collect()
    values = {family.name: family.samples[0].value for family in shown}
    assert values["twinpath_local_triton_rows"] == 20
    assert values["twinpath_local_triton_queue_seconds"] == 5
    assert values["twinpath_local_triton_busy_seconds"] == 1800
    assert abs(values["twinpath_local_triton_cost_usd"] - 0.025) < 1e-12
    assert abs(values["twinpath_local_triton_energy_joules"] - 54_000) < 1e-6
    bare = TritonCounters(lambda: [("m", "1", counters)], Price(0.0, 1)).collect()
    assert not any("cost" in family.name or "energy" in family.name for family in bare)
