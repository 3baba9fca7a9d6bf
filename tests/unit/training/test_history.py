"""The synthetic history: real last rows, late rows, and nothing from the future."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from deploy.training import build_data
from deploy.training.history import CREATED, EVENT, KEY, build_history, is_late
from deploy.training.known import load_known_rows

ANCHOR = datetime(2025, 3, 1, tzinfo=UTC)
KNOWN = load_known_rows()


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    """Every frame, built once."""
    return build_data.build(ANCHOR, KNOWN).frames


def test_newest_observation_is_the_real_row(frames) -> None:
    """Each ordinary patient's newest observation carries the data set's own values, exactly."""
    real, _ = build_data.tumour_rows()
    newest = frames["tumour_measurements"].groupby(KEY).tail(1).set_index(KEY)
    ordinary = real[~real[KEY].isin(KNOWN.tumour_special)].set_index(KEY)
    pd.testing.assert_frame_equal(newest.loc[ordinary.index, ordinary.columns], ordinary)


def test_earlier_observations_differ(frames) -> None:
    """No earlier observation equals the newest, so that a wrong join shows."""
    serum = frames["diabetes_serum"]
    newest = serum.groupby(KEY)["s1"].transform("last")
    earlier = serum[EVENT] < serum.groupby(KEY)[EVENT].transform("max")
    assert not (serum["s1"] == newest)[earlier].any()


@pytest.mark.parametrize("name", ["tumour_measurements", "diabetes_baseline", "diabetes_serum"])
def test_nothing_happens_after_the_anchor(frames, name: str) -> None:
    """Every row was measured, then recorded, before the anchor."""
    frame = frames[name]
    assert (frame[EVENT] < frame[CREATED]).all()
    assert (frame[CREATED] < ANCHOR).all()


def test_late_rows_were_recorded_after_a_newer_one(frames) -> None:
    """Every third patient has one row that was recorded only after a newer measurement."""
    frame = frames["diabetes_baseline"]
    newer_first = (
        frame.groupby(KEY)[CREATED].transform(lambda times: times.cummax()) > frame[CREATED]
    )
    after_late = set(frame[newer_first][KEY])
    assert after_late == {i for i in frame[KEY].unique() if is_late(int(i))}


def test_values_do_not_depend_on_the_anchor(frames) -> None:
    """Another anchor day moves the times and leaves the values, so that models stay the same."""
    other = build_data.build(ANCHOR + timedelta(days=99), KNOWN).frames
    for name, frame in frames.items():
        drop = [column for column in (EVENT, CREATED) if column in frame.columns]
        pd.testing.assert_frame_equal(frame.drop(columns=drop), other[name].drop(columns=drop))
        assert (other[name][EVENT] - frame[EVENT] == timedelta(days=99)).all()


def test_special_rows_are_special(frames) -> None:
    """The published ids are stale, absent or null exactly where known_rows.json says."""
    serum = frames["diabetes_serum"]
    baseline = frames["diabetes_baseline"]
    age_of = lambda frame, who: ANCHOR - frame[frame[KEY] == who][EVENT].max()  # noqa: E731
    year = timedelta(days=365)
    assert age_of(serum, KNOWN.diabetes_stale) > year
    assert age_of(baseline, KNOWN.diabetes_stale) > year
    assert age_of(serum, KNOWN.diabetes_stale_serum_only) > year
    assert age_of(baseline, KNOWN.diabetes_stale_serum_only) < timedelta(days=1)
    assert age_of(frames["tumour_measurements"], KNOWN.tumour_stale) > year
    assert KNOWN.diabetes_no_serum not in set(serum[KEY])
    assert KNOWN.diabetes_no_serum in set(baseline[KEY])
    who, feature = KNOWN.diabetes_null
    assert serum[serum[KEY] == who][feature].isna().all()
    assert serum[feature].isna().sum() == (serum[KEY] == who).sum()


def test_labels_leave_the_special_rows_out(frames) -> None:
    """Training never sees a patient whose features were tampered with."""
    assert not set(frames["diabetes_labels"][KEY]) & KNOWN.diabetes_special
    assert not set(frames["tumour_labels"][KEY]) & KNOWN.tumour_special
    assert frames["diabetes_labels"]["bmi_now"].notna().all()


def test_fixed_features_do_not_move() -> None:
    """A feature named as fixed has one value over a patient's whole history."""
    current = pd.DataFrame({KEY: [1, 2, 3], "age": [40, 50, 60], "x": [1.0, 2.0, 3.0]})
    history = build_history(current, ANCHOR, np.random.default_rng(0), fixed=("age",))
    spread = history.groupby(KEY)[["age", "x"]].std()
    assert (spread["age"] == 0).all()
    assert (spread["x"] > 0).all()


def test_files_are_written_and_a_future_anchor_is_refused(tmp_path, capsys) -> None:
    """The command writes five files; an anchor in the future ends with code 2 and a reason."""
    assert build_data.main(["--out", str(tmp_path), "--anchor", "2025-03-01"]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == {
        "tumour_measurements",
        "diabetes_baseline",
        "diabetes_serum",
        "tumour_labels",
        "diabetes_labels",
    }
    with pytest.raises(SystemExit) as stop:
        build_data.main(["--out", str(tmp_path), "--anchor", "2999-01-01"])
    assert stop.value.code == 2
    assert "future" in capsys.readouterr().err
