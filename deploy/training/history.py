"""A synthetic history for data that has none: pure functions over frames, seeded, no I/O.

The data sets of scikit-learn have no ids and no times. Each row becomes a patient whose **last**
observation is the real row; the earlier observations are the real row perturbed. For every third
patient a late row is added: measured between two observations, recorded only after the newer one.
A join that takes the newest row, or the newest event regardless of when it was recorded, gives
such a patient values that nobody knew at the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

KEY = "patient_id"
EVENT = "event_timestamp"
CREATED = "created_timestamp"

# Days before the anchor. The last is the real row.
OBSERVED_DAYS = (150, 90, 45, 0)
LATE_EVENT_DAYS = 60
LATE_CREATED_DAYS = 40
LATE_EVERY = 3
ARRIVED_LAST_EVERY = 6
STALE_SHIFT = timedelta(days=400)
NOISE = 0.05

_RECORDING_DELAY = timedelta(minutes=10)
_ARRIVED_LAST = timedelta(minutes=30)


def offset_of(patient_id: int) -> timedelta:
    """How long before a visit day's anchor this patient was seen: 1 to 13 hours, fixed."""
    return timedelta(minutes=60 + (patient_id * 37) % 720)


def is_late(patient_id: int) -> bool:
    """Tell whether the patient has a late row."""
    return patient_id % LATE_EVERY == 0


def with_ids(frame: pd.DataFrame) -> pd.DataFrame:
    """Number the rows as patients 1..N."""
    numbered = frame.reset_index(drop=True)
    numbered.insert(0, KEY, np.arange(1, len(frame) + 1, dtype=np.int64))
    return numbered


def perturb(
    rows: pd.DataFrame, features: Sequence[str], fixed: Sequence[str], rng: np.random.Generator
) -> pd.DataFrame:
    """Multiply each feature by 1 + N(0, NOISE); those in `fixed` stay as they are."""
    noisy = rows.copy()
    moving = [name for name in features if name not in fixed]
    factors = 1.0 + rng.normal(0.0, NOISE, size=(len(rows), len(moving)))
    noisy[moving] = noisy[moving].to_numpy(dtype=np.float64) * factors
    return noisy


def build_history(
    current: pd.DataFrame,
    anchor: datetime,
    rng: np.random.Generator,
    *,
    fixed: Sequence[str] = (),
    stale: frozenset[int] = frozenset(),
    absent: frozenset[int] = frozenset(),
) -> pd.DataFrame:
    """Give each patient several observations over time, late rows included.

    Args:
        current: one real row a patient, with `patient_id` and the features.
        anchor: midnight UTC; every time in the result lies before it.
        rng: the only source of randomness; values do not depend on `anchor`.
        fixed: features that do not change over time.
        stale: patients whose whole history lies `STALE_SHIFT` further back.
        absent: patients left out.

    Returns:
        Rows with `event_timestamp` (measured) and `created_timestamp` (recorded), by patient and
        event time.
    """
    features = [name for name in current.columns if name != KEY]
    ids = current[KEY].to_numpy()
    seen = pd.to_timedelta([offset_of(int(i)) for i in ids])
    parts: list[pd.DataFrame] = []
    for days in OBSERVED_DAYS:
        rows = perturb(current, features, fixed, rng) if days else current.copy()
        rows[EVENT] = anchor - timedelta(days=days) - seen
        rows[CREATED] = rows[EVENT] + _RECORDING_DELAY
        parts.append(rows)

    late = perturb(current, features, fixed, rng)
    late[EVENT] = anchor - timedelta(days=LATE_EVENT_DAYS) - seen
    arrived_last = ids % ARRIVED_LAST_EVERY == 0
    late[CREATED] = np.where(
        arrived_last,
        pd.Timestamp(anchor - _ARRIVED_LAST),
        pd.Timestamp(anchor - timedelta(days=LATE_CREATED_DAYS)),
    )
    late[CREATED] = pd.to_datetime(late[CREATED], utc=True)
    parts.append(late[ids % LATE_EVERY == 0])

    history = pd.concat(parts, ignore_index=True)
    history = history[~history[KEY].isin(sorted(absent))]
    old = history[KEY].isin(sorted(stale))
    history.loc[old, [EVENT, CREATED]] -= STALE_SHIFT
    for name in (EVENT, CREATED):
        history[name] = history[name].astype("datetime64[us, UTC]")
    return history.sort_values([KEY, EVENT], kind="stable").reset_index(drop=True)
