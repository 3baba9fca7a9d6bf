"""Whom the features are about.

Both entities join by `patient_id`, but their ids are unrelated: patient 17 of the tumour data
and patient 17 of the diabetes data are two people. The views keep them apart.
"""

from __future__ import annotations

from feast import Entity, ValueType

tumour_patient = Entity(
    name="tumour_patient",
    join_keys=["patient_id"],
    value_type=ValueType.INT64,
    description="A row of the Wisconsin Diagnostic Breast Cancer data, ids 1..569",
    tags={"pii": "pseudonym"},
)

diabetes_patient = Entity(
    name="diabetes_patient",
    join_keys=["patient_id"],
    value_type=ValueType.INT64,
    description="A row of the diabetes progression data, ids 1..442",
    tags={"pii": "pseudonym"},
)
