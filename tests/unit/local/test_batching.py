"""Batching from a latency budget, into the configuration that Triton gets."""

from __future__ import annotations

import json

import pytest

from services.local.batching import Batching, derive
from services.local.triton import with_versions

CONFIG = 'name: "m"\nbackend: "onnxruntime"\nmax_batch_size: 64\n'


@pytest.mark.parametrize(
    ("budget_ms", "most", "found"),
    [
        (50, 64, Batching(0, (16, 64))),
        (99, 64, Batching(0, (16, 64))),
        (100, 8, Batching(1_000, (2, 8))),
        (300, 2, Batching(3_000, (2,))),
        (10_000, 64, Batching(5_000, (16, 64))),
        (50, 1, None),
        (50, 0, None),
        (0, 64, None),
    ],
)
def test_the_formula(budget_ms: float, most: int, found: Batching | None) -> None:
    """A hundredth of a patient budget, 5 ms at the most; a quarter of the batch, and all."""
    assert derive(budget_ms, most) == found


def test_it_goes_into_the_configuration_of_a_model_that_batches() -> None:
    """Its other settings stay; a model without dynamic batching, or a budget, stays as it is."""
    text = CONFIG + "dynamic_batching { priority_levels: 3 default_priority_level: 2 }\n"
    batching = json.loads(with_versions(text, ["1"], 200))["dynamic_batching"]
    assert batching["max_queue_delay_microseconds"] == "2000"
    assert batching["preferred_batch_size"] == [16, 64]
    assert batching["priority_levels"] == "3"
    plain = json.loads(with_versions(text, ["1"]))["dynamic_batching"]
    assert "max_queue_delay_microseconds" not in plain
    assert "dynamic_batching" not in json.loads(with_versions(CONFIG, ["1"], 50))
