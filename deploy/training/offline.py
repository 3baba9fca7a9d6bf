"""Training frames from Feast's offline store, without an online store and without `feast apply`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from deploy.training.history import EVENT, KEY
from deploy.training.tasks import Task

if TYPE_CHECKING:
    from feast import FeatureStore


class MissingDataError(Exception):
    """The offline data is absent, or lacks what a task needs."""


@contextmanager
def offline_store(repo: Path) -> Iterator[FeatureStore]:
    """Open the Feast repo with a registry of its own and no online store.

    The definitions are those in `repo` at this moment, whatever was applied before, and no
    registry or Redis that serves others is touched.

    Args:
        repo: folder with `feature_store.yaml`, the definitions and `data/`.
    """
    # feast takes seconds to import; callers that only want constants should not pay that.
    from feast import FeatureStore, RepoConfig  # noqa: PLC0415
    from feast.repo_config import load_repo_config  # noqa: PLC0415

    repo = repo.resolve()
    declared = load_repo_config(repo, repo / "feature_store.yaml")
    with TemporaryDirectory(prefix="twinpath-registry-") as folder:
        store = FeatureStore(
            config=RepoConfig(
                project=declared.project,
                provider="local",
                registry={"registry_type": "file", "path": f"{folder}/registry.db"},
                offline_store={"type": "file"},
                online_store=None,
                entity_key_serialization_version=declared.entity_key_serialization_version,
                repo_path=repo,
            )
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="On demand feature view is an experimental")
            store.apply(definitions(repo))
        yield store


def definitions(repo: Path) -> list[Any]:
    """Import the definitions of a Feast repo, as `feast apply` does, and forget its modules."""
    from feast.repo_operations import parse_repo  # noqa: PLC0415

    before = set(sys.modules)
    with chdir(repo):
        sys.path.insert(0, str(repo))
        try:
            found = parse_repo(repo)
        finally:
            sys.path.remove(str(repo))
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None)
                if file and Path(file).resolve().parent == repo:
                    del sys.modules[name]
    return [
        *found.data_sources,
        *found.entities,
        *found.feature_views,
        *found.on_demand_feature_views,
        *found.feature_services,
    ]


def training_frame(store: FeatureStore, task: Task, data: Path) -> pd.DataFrame:
    """Join each label with the features that were known at its decision time.

    Both rules of time hold: measured no later than the decision, and *recorded* no later either.
    Feast applies the first by itself and the second only when asked.

    Args:
        store: an open store, see `offline_store`.
        task: whose features and labels.
        data: the folder of the label frames.

    Returns:
        One row a label, by patient id: id, event time, the features in model order, the label.

    Raises:
        MissingDataError: no label file, or a label without complete features.
    """
    path = data / task.labels_file
    if not path.is_file():
        raise MissingDataError(f"{path} is missing: run `python -m deploy.training.build_data`")
    labels = pd.read_parquet(path)
    service = store.get_feature_service(task.feature_service)
    frame = store.get_historical_features(
        entity_df=labels[[KEY, EVENT, task.label, *task.request_fields]],
        features=service,
        filter_by_created_timestamp=True,
    ).to_df()
    frame = frame.sort_values(KEY, kind="stable").reset_index(drop=True)
    frame = frame[[KEY, EVENT, *task.feature_names, task.label]]
    holes = frame[list(task.feature_names)].isna().any()
    if holes.any():
        raise MissingDataError(
            f"{task.name}: null values at decision time in {', '.join(holes[holes].index)}; "
            "is the data older than the views' ttl? Run `python -m deploy.training.build_data`"
        )
    return frame
