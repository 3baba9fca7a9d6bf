"""How long payloads are kept, by task. Pure, but for reading the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.chassis.files import read_model

SIX_MONTHS = 183
DAY_US = 86_400_000_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskDays(_Strict):
    """One task's retention."""

    days: int = Field(ge=1, le=36_525)
    shorter_because: str = Field(default="", description="why fewer than six months are right")

    @model_validator(mode="after")
    def _short_needs_a_reason(self) -> TaskDays:
        if self.days < SIX_MONTHS and not self.shorter_because:
            raise ValueError(f"fewer than {SIX_MONTHS} days need a reason: shorter_because")
        return self


class RetentionFile(_Strict):
    """The file retention.yaml."""

    default_days: int = Field(default=SIX_MONTHS, ge=SIX_MONTHS, le=36_525)
    tasks: dict[str, TaskDays] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retention:
    """Days for which each task's payloads are kept."""

    default_days: int = SIX_MONTHS
    by_task: Mapping[str, int] = field(default_factory=dict)

    def days(self, task: str) -> int:
        """Return the days for a task."""
        return self.by_task.get(task, self.default_days)

    def cutoff_us(self, task: str, now_us: int) -> int:
        """Return the record time before which the task's payloads are expired; unix us."""
        return now_us - self.days(task) * DAY_US

    def expired(self, task: str, record_time_us: int, now_us: int) -> bool:
        """Tell whether the payload of a record is past its time."""
        return record_time_us < self.cutoff_us(task, now_us)


def read_retention(path: Path | None) -> Retention:
    """Read the file; without one the default holds for every task.

    Raises:
        FileError: it has mistakes; the message names file, line and rule.
    """
    if path is None or not path.exists():
        return Retention()
    found = read_model(path, RetentionFile)
    return Retention(found.default_days, {name: task.days for name, task in found.tasks.items()})
