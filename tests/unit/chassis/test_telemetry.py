"""How a process is set up to trace: the standard variables, and our own switch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import ROOT, free_port

# A process of its own: a tracer provider can be set once.
SCRIPT = """
from services.chassis import telemetry
provider = telemetry.setup("probe")
kept = telemetry.late_export() is not None
print(provider.sampler.get_description() if provider else "none", telemetry.tracing(), kept)
"""


def setup(**variables: str) -> str:
    """What a process with these variables says of its sampler."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TWINPATH_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**kept, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_without_an_endpoint_nothing_is_recorded() -> None:
    """No provider, no spans, no cost."""
    assert setup() == "none False False"


@pytest.mark.parametrize(
    ("variables", "sampler", "kept"),
    [
        ({}, "ParentBased{root:AlwaysOnSampler", True),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            "ParentBased{root:TraceIdRatioBased{0.25}",
            True,
        ),
        ({"TWINPATH_TRACES_KEEP_FAILED": "false"}, "ParentBased{root:AlwaysOnSampler", False),
    ],
)
def test_the_standard_sampler_decides_and_ours_keeps_what_failed(
    variables: dict[str, str], sampler: str, *, kept: bool
) -> None:
    """OTEL_TRACES_SAMPLER decides; TWINPATH_TRACES_KEEP_FAILED=false leaves it alone with that."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    said = setup(**endpoint, **variables)
    assert said.startswith(sampler)
    assert said.endswith(f" True {kept}")
