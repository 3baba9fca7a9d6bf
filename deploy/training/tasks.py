"""What is trained: for each task its features in the model's order, its label and its data."""

from __future__ import annotations

from dataclasses import dataclass

BASELINE = ("age", "sex", "bmi", "bp")
SERUM = ("s1", "s2", "s3", "s4", "s5", "s6")
RATIOS = ("bmi_change", "bmi_bp_index", "ldl_hdl_ratio")
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
MEASUREMENTS = (
    *(f"mean_{measure}" for measure in _MEASURES),
    *(f"{measure}_error" for measure in _MEASURES),
    *(f"worst_{measure}" for measure in _MEASURES),
)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as training sees it.

    Attributes:
        name: the task's name in the catalog.
        feature_service: the Feast feature service that serves the same features online.
        features: (feature, view) in the order of the model's input tensor.
        label: the label's column in the label frame.
        labels_file: the label frame's file in the offline data folder.
        request_fields: columns of the label frame that a caller sends with a request.
        data: name, source and licence of the data, for the model card.
    """

    name: str
    feature_service: str
    features: tuple[tuple[str, str], ...]
    label: str
    labels_file: str
    request_fields: tuple[str, ...]
    data: dict[str, str]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features in the order of the model's input tensor."""
        return tuple(name for name, _ in self.features)


_SYNTHETIC = (
    "Ids, times and all but each patient's last observation are synthetic; "
    "training uses the real last observation."
)

TUMOUR_TRIAGE = Task(
    name="tumour_triage",
    feature_service="tumour_triage_v1",
    features=tuple((name, "tumour_measurements") for name in MEASUREMENTS),
    label="malignant",
    labels_file="tumour_labels.parquet",
    request_fields=(),
    data={
        "name": "Breast Cancer Wisconsin (Diagnostic)",
        "source": "sklearn.datasets.load_breast_cancer; doi:10.24432/C5DW2B",
        "licence": "CC BY 4.0",
        "note": _SYNTHETIC,
    },
)

DIABETES_PROGRESSION = Task(
    name="diabetes_progression",
    feature_service="diabetes_progression_v1",
    features=(
        *((name, "diabetes_baseline") for name in BASELINE),
        *((name, "diabetes_serum") for name in SERUM),
        *((name, "diabetes_ratios") for name in RATIOS),
    ),
    label="progression",
    labels_file="diabetes_labels.parquet",
    request_fields=("bmi_now",),
    data={
        "name": "Diabetes progression (Efron, Hastie, Johnstone, Tibshirani, 2004)",
        "source": "sklearn.datasets.load_diabetes(scaled=False)",
        "licence": "none stated by its authors; distributed with scikit-learn (BSD-3-Clause)",
        "note": _SYNTHETIC + " `bmi_now` is the real bmi plus seeded noise.",
    },
)
