"""What a task does while the feature store is away: its own rule, and never less strict. Pure.

With `store_away: default` a decision is made on the defaults of the task's file. The data class of
what was not read is not known, so it counts as restricted: such a decision stays in the building.
"""

from __future__ import annotations

from services.chassis.errors import DeadlineExceededError, ServiceError, UnavailableError
from services.router.catalog import DATA_CLASSES, Task
from services.router.ports import FeatureVector


def without_features(task: Task, error: ServiceError) -> FeatureVector:
    """Return the vector of a row that could not be read: nothing is in it, every default counts.

    Raises:
        ServiceError: the one given, where the task refuses, or the store was not what failed.
    """
    away = isinstance(error, UnavailableError | DeadlineExceededError)
    if not away or task.missing_features.store_away != "default":
        raise error
    return FeatureVector(
        values={},
        statuses={},
        data_class=DATA_CLASSES["restricted"],
        feature_service=task.feature_service,
        registry_version="",
    )
