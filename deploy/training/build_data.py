"""Write the offline store's Parquet files: `python -m deploy.training.build_data`.

Real data (scikit-learn's Wisconsin Diagnostic Breast Cancer and diabetes progression data) with
ids and a **synthetic history**, see `history.py`; and the label frames that training joins to.
The values never depend on the anchor day, only the times do, so that models trained on another day
are the same.

Exit codes: 0 written; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes

from deploy.training.history import CREATED, EVENT, KEY, build_history, with_ids
from deploy.training.known import KnownRows, load_known_rows
from deploy.training.tasks import BASELINE, SERUM

SEED = 20_240_601
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "feature_repo" / "data"
BMI_NOW_NOISE = 0.5  # kg/m2 between the visit and the decision


@dataclass(frozen=True, slots=True)
class Dataset:
    """The frames to write, by file name without its ending."""

    frames: dict[str, pd.DataFrame]


def tumour_rows() -> tuple[pd.DataFrame, pd.Series]:
    """Return the real measurements with ids, and 1 for malignant, 0 for benign."""
    data = load_breast_cancer(as_frame=True)
    names: list[str] = [name.replace(" ", "_") for name in data.data.columns]
    # scikit-learn codes malignant as 0; a triage model answers with the risk, so malignant is 1.
    malignant = (data.target == 0).astype("int64")
    return with_ids(data.data.set_axis(names, axis=1)), malignant


def diabetes_rows() -> tuple[pd.DataFrame, pd.Series]:
    """Return the real, unscaled measurements with ids, and the progression after one year."""
    data = load_diabetes(as_frame=True, scaled=False)
    rows = with_ids(data.data)
    rows[["age", "sex"]] = rows[["age", "sex"]].astype("int64")
    return rows, data.target.astype("float64")


def build(anchor: datetime, known: KnownRows) -> Dataset:
    """Build every frame. Deterministic: one seed for each view."""
    tumour, malignant = tumour_rows()
    diabetes, progression = diabetes_rows()

    tumour_history = build_history(
        tumour, anchor, np.random.default_rng([SEED, 1]), stale=frozenset({known.tumour_stale})
    )
    baseline = build_history(
        diabetes[[KEY, *BASELINE]],
        anchor,
        np.random.default_rng([SEED, 2]),
        fixed=("age", "sex"),
        stale=frozenset({known.diabetes_stale}),
    )
    serum = build_history(
        diabetes[[KEY, *SERUM]],
        anchor,
        np.random.default_rng([SEED, 3]),
        stale=frozenset({known.diabetes_stale, known.diabetes_stale_serum_only}),
        absent=frozenset({known.diabetes_no_serum}),
    )
    _blank(tumour_history, *known.tumour_null)
    _blank(serum, *known.diabetes_null)

    tumour_labels = _labels(tumour, malignant.rename("malignant"), anchor, known.tumour_special)
    diabetes_labels = _labels(
        diabetes, progression.rename("progression"), anchor, known.diabetes_special
    )
    moved = np.random.default_rng([SEED, 4]).normal(0.0, BMI_NOW_NOISE, size=len(diabetes))
    bmi_now = (diabetes["bmi"] + moved).round(1)
    diabetes_labels["bmi_now"] = bmi_now.loc[diabetes_labels.index]
    return Dataset(
        {
            "tumour_measurements": tumour_history,
            "diabetes_baseline": baseline,
            "diabetes_serum": serum,
            "tumour_labels": tumour_labels,
            "diabetes_labels": diabetes_labels,
        }
    )


def _blank(history: pd.DataFrame, patient_id: int, feature: str) -> None:
    """Make one feature of one patient null in every observation."""
    history.loc[history[KEY] == patient_id, feature] = np.nan


def _labels(
    rows: pd.DataFrame, label: pd.Series, anchor: datetime, special: frozenset[int]
) -> pd.DataFrame:
    """Say what was learned about each ordinary patient, and when the decision was due."""
    frame = pd.DataFrame({KEY: rows[KEY], EVENT: pd.Timestamp(anchor), str(label.name): label})
    frame[EVENT] = frame[EVENT].astype("datetime64[us, UTC]")
    return frame[~frame[KEY].isin(sorted(special))]


def write(dataset: Dataset, out: Path) -> None:
    """Write each frame as Parquet; a reader never sees half a file."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in dataset.frames.items():
        part = out / f".{name}.parquet.part"
        frame.to_parquet(part, index=False)
        part.replace(out / f"{name}.parquet")


def midnight(day: date) -> datetime:
    """Return the day's first instant in UTC."""
    return datetime.combine(day, time(), tzinfo=UTC)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="build_data", description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the files")
    parser.add_argument(
        "--anchor",
        type=date.fromisoformat,
        help="day (YYYY-MM-DD, UTC) before whose midnight the last observations lie; "
        "default: today, so that they are fresh",
    )
    args = parser.parse_args(argv)
    today = datetime.now(UTC).date()
    anchor = midnight(args.anchor or today)
    if anchor.date() > today:
        parser.error(f"--anchor {anchor.date()} lies in the future; today is {today} UTC")
    dataset = build(anchor, load_known_rows())
    write(dataset, args.out)
    for name, frame in dataset.frames.items():
        late = ""
        if CREATED in frame.columns:
            newest = frame.groupby(KEY)[EVENT].transform("max")
            overdue = (frame[CREATED] - frame[EVENT]).dt.days >= 1
            late = f", {int((overdue & (frame[EVENT] < newest)).sum())} of them late"
        sys.stdout.write(f"wrote {name}.parquet: {len(frame)} rows{late}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
