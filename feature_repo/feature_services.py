"""What each task reads: one feature service a task and version.

The order of features within a service carries no meaning: a model's input order stands in its
card and in the catalog.
"""

from __future__ import annotations

from diabetes_ratios import diabetes_ratios
from diabetes_views import diabetes_baseline, diabetes_serum
from feast import FeatureService
from tumour_views import tumour_measurements

tumour_triage_v1 = FeatureService(
    name="tumour_triage_v1",
    features=[tumour_measurements],
    description="Input of tumour_triage",
    tags={"task": "tumour_triage", "data_class": "restricted"},
)

diabetes_progression_v1 = FeatureService(
    name="diabetes_progression_v1",
    features=[diabetes_baseline, diabetes_serum, diabetes_ratios],
    description="Input of diabetes_progression",
    tags={"task": "diabetes_progression", "data_class": "internal"},
)
