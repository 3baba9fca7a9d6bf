"""Measurements of cell nuclei for `tumour_triage`. Restricted: they may never leave."""

from __future__ import annotations

from datetime import timedelta

from entities import tumour_patient
from feast import FeatureView, Field
from feast.types import Float64
from sources import tumour_measurements_file

_MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave_points",
    "symmetry",
    "fractal_dimension",
)
_NAMES = (
    *(f"mean_{measure}" for measure in _MEASURES),
    *(f"{measure}_error" for measure in _MEASURES),
    *(f"worst_{measure}" for measure in _MEASURES),
)

tumour_measurements = FeatureView(
    name="tumour_measurements",
    entities=[tumour_patient],
    ttl=timedelta(days=90),
    schema=[Field(name=name, dtype=Float64, tags={"pii": "health"}) for name in _NAMES],
    source=tumour_measurements_file,
    online=True,
    description="Thirty measurements of the nuclei in a fine needle aspirate",
    tags={"data_class": "restricted", "owner": "oncology"},
)
