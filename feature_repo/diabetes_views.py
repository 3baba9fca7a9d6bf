"""What is known about a diabetes patient: the visit's baseline, and the laboratory's serum."""

from __future__ import annotations

from datetime import timedelta

from entities import diabetes_patient
from feast import FeatureView, Field
from feast.types import Float64, Int64
from sources import diabetes_baseline_file, diabetes_serum_push

diabetes_baseline = FeatureView(
    name="diabetes_baseline",
    entities=[diabetes_patient],
    ttl=timedelta(days=180),
    schema=[
        Field(name="age", dtype=Int64, tags={"pii": "quasi_identifier", "unit": "a"}),
        Field(name="sex", dtype=Int64, tags={"pii": "quasi_identifier"}),
        Field(name="bmi", dtype=Float64, tags={"pii": "health", "unit": "kg/m2"}),
        Field(name="bp", dtype=Float64, tags={"pii": "health", "unit": "mmHg"}),
    ],
    source=diabetes_baseline_file,
    online=True,
    description="Age, sex (1 or 2), body mass index, mean arterial pressure",
    tags={"data_class": "internal", "owner": "metabolics"},
)

diabetes_serum = FeatureView(
    name="diabetes_serum",
    entities=[diabetes_patient],
    ttl=timedelta(days=90),
    schema=[
        Field(name="s1", dtype=Float64, description="total cholesterol", tags={"pii": "health"}),
        Field(name="s2", dtype=Float64, description="LDL", tags={"pii": "health"}),
        Field(name="s3", dtype=Float64, description="HDL", tags={"pii": "health"}),
        Field(name="s4", dtype=Float64, description="cholesterol / HDL", tags={"pii": "health"}),
        Field(name="s5", dtype=Float64, description="log triglycerides", tags={"pii": "health"}),
        Field(name="s6", dtype=Float64, description="blood sugar", tags={"pii": "health"}),
    ],
    source=diabetes_serum_push,
    online=True,
    description="Six blood serum measurements",
    tags={"data_class": "internal", "owner": "laboratory"},
)
