"""Where the features come from: Parquet offline, pushes and request fields online.

`python -m deploy.training.build_data` writes the Parquet files; they are generated, not committed.
"""

from __future__ import annotations

from feast import Field, FileSource, PushSource, RequestSource
from feast.types import Float64

tumour_measurements_file = FileSource(
    name="tumour_measurements_file",
    path="data/tumour_measurements.parquet",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
    description="Real last observation of each patient, synthetic history before it",
)

diabetes_baseline_file = FileSource(
    name="diabetes_baseline_file",
    path="data/diabetes_baseline.parquet",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
    description="Real last observation of each patient, synthetic history before it",
)

diabetes_serum_file = FileSource(
    name="diabetes_serum_file",
    path="data/diabetes_serum.parquet",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
    description="Real last observation of each patient, synthetic history before it",
)

diabetes_serum_push = PushSource(
    name="diabetes_serum_push",
    batch_source=diabetes_serum_file,
    description="Laboratory results as they come in",
)

diabetes_request = RequestSource(
    name="diabetes_request",
    schema=[
        Field(
            name="bmi_now",
            dtype=Float64,
            description="Body mass index measured at the decision",
            tags={"unit": "kg/m2", "pii": "health"},
        ),
    ],
    description="What the caller measures and sends with the request",
)
