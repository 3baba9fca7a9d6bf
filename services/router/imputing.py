"""What a missing feature is replaced by: the median of the data that the task's model learned from.

`statistics/<task>.yaml` in the catalog holds each feature's statistics as they stand in the model's
card; `python -m deploy.training.statistics` writes it. It is the task's, not a model's: the model
input is made before any candidate is known, and must be the same for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from services.chassis.files import FileError, read_model

FOLDER = "statistics"


class Summary(BaseModel):
    """One feature in the training data; without `median` it had no value there."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    median: float | None = None


class Statistics(BaseModel):
    """One statistics file. `features` are by `view__feature`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    task: str
    model: str
    version: str
    features: dict[str, Summary]


def read_medians(folder: Path, task: str, sources: Iterable[str]) -> Mapping[str, float]:
    """Return the training medians of a task's features.

    Args:
        folder: The catalog's folder.
        task: The task's name.
        sources: The features that the task reads, as `view__feature`.

    Raises:
        FileError: there is no file, it is about another task, or lacks features.
    """
    path = folder / FOLDER / f"{task}.yaml"
    if not path.is_file():
        raise FileError(
            f"{path}:1: {task} imputes from training statistics, and there are none; "
            "`python -m deploy.training.statistics CARD` writes them"
        )
    found = read_model(path, Statistics)
    if found.task != task:
        raise FileError(f"{path}:1: task: these statistics are of {found.task}")
    medians = {n: s.median for n, s in found.features.items() if s.median is not None}
    lacking = sorted(set(sources) - medians.keys())
    if lacking:
        raise FileError(f"{path}:1: features: there is no median of {', '.join(lacking)}")
    return medians
