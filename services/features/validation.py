"""Rules that a feature's values must keep, and what breaks them: range, category, null share.

The rules stand in files beside the views, `validation/*.yaml` in the Feast repo, one a view. A
row that breaks a rule is refused, or only marked, as the rule says. Rules hold for the features
that a feature service gives; what only feeds an on-demand view is judged by its result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.chassis.files import FileError, digest_of, line_of, load_yaml, read_model
from services.features.definitions import FeatureService, Registry, Rule, Status
from services.features.lineage import version_hash

BROKEN = Counter(
    "twinpath_features_rules_broken_total",
    "Rows that broke a validation rule.",
    ("view", "feature", "rule", "action"),
)

_NUMBERS = ("INT32", "INT64", "FLOAT", "DOUBLE")
_NAMED = ("INT32", "INT64", "STRING", "BOOL")
_FITS = {"range": _NUMBERS, "category": _NAMED}
_THERE = (Status.PRESENT, Status.STALE)
_NONE = (Status.NULL, Status.ABSENT_FEATURE)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Range(_Strict):
    min: float = Field(default=float("-inf"))
    max: float = Field(default=float("inf"))

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.max:
            raise ValueError("min must not be above max")
        return self


class _NullShare(_Strict):
    max: float = Field(ge=0.0, le=1.0)
    rows: int = Field(default=500, ge=1, le=100_000)


class _Rule(_Strict):
    feature: str
    action: Literal["refuse", "mark"] = "refuse"
    range: _Range | None = None
    category: tuple[bool | int | str, ...] | None = Field(default=None, min_length=1)
    null_share: _NullShare | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in ("range", "category", "null_share") if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError("a rule is exactly one of range, category, null_share")
        return self


class _RuleFile(_Strict):
    view: str
    rules: tuple[_Rule, ...]


def read_rules(folder: Path, registry: Registry) -> dict[str, tuple[Rule, ...]]:
    """Return the rules by view.

    Args:
        folder: `validation` of the Feast repo; there need not be one.
        registry: What the rules are about.

    Raises:
        FileError: with one line `file:line: rule` for each mistake in any file.
    """
    rules: dict[str, tuple[Rule, ...]] = {}
    mistakes: list[str] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            read = read_model(path, _RuleFile)
        except FileError as error:
            mistakes.append(str(error))
            continue
        mistakes += _misfits(path, read, registry)
        if read.view in rules:
            mistakes.append(f"{path}:1: view: another file has rules for {read.view!r}")
        rules[read.view] = tuple(_plain(rule) for rule in read.rules)
    if mistakes:
        raise FileError("\n".join(mistakes))
    return rules


def _misfits(path: Path, read: _RuleFile, registry: Registry) -> list[str]:
    data = load_yaml(path)
    known = registry.schemas.get(read.view)
    if known is None:
        names = ", ".join(sorted(registry.schemas)) or "none"
        line = line_of(data, ("view",))
        return [f"{path}:{line}: view: there is no view {read.view!r}; there are: {names}"]
    wrong = []
    for number, rule in enumerate(read.rules):
        value_type = known.get(rule.feature)
        if value_type is None:
            line = line_of(data, ("rules", number, "feature"))
            names = ", ".join(sorted(known))
            wrong.append(
                f"{path}:{line}: rules.{number}.feature: {read.view} has no feature "
                f"{rule.feature!r}; it has: {names}"
            )
            continue
        for kind, types in _FITS.items():
            if getattr(rule, kind) is not None and value_type not in types:
                line = line_of(data, ("rules", number, kind))
                wrong.append(
                    f"{path}:{line}: rules.{number}.{kind}: {rule.feature} is {value_type}; "
                    f"{kind} is for {', '.join(types)}"
                )
    return wrong


def _plain(rule: _Rule) -> Rule:
    refuse = rule.action == "refuse"
    if rule.range is not None:
        return Rule(rule.feature, "range", refuse, low=rule.range.min, high=rule.range.max)
    if rule.category is not None:
        return Rule(rule.feature, "category", refuse, allowed=frozenset(rule.category))
    assert rule.null_share is not None
    return Rule(
        *(rule.feature, "null_share", refuse),
        max_share=rule.null_share.max,
        rows=rule.null_share.rows,
    )


class _Loader(Protocol):
    def load(self) -> Registry | None: ...


class RuledRepo:
    """A Feast repo with its rules: a change of either is a new registry.

    A mistake in a rule is one in the registry: the last good one stays in force, both together.

    Args:
        repo: Reads the registry; see `store.FeastRepo.load`.
        folder: The folder of the rules.
    """

    def __init__(self, repo: _Loader, folder: Path) -> None:
        self._repo = repo
        self._folder = folder
        self._registry: Registry | None = None
        self._digest = ""

    def load(self) -> Registry | None:
        """Return the registry with its rules; None when neither has changed.

        Raises:
            Exception: when either is broken.
        """
        found = self._repo.load()
        if found is not None:
            self._registry, self._digest = found, ""
        digest = digest_of(self._folder.glob("*.yaml"), self._folder)
        if self._registry is None or digest == self._digest:
            return None
        registry = self._registry
        # One version for both: a vector's lineage, and the record, tell which rules were in force.
        version = version_hash({"registry": registry.version, "rules": digest})
        ruled = replace(registry, version=version, rules=read_rules(self._folder, registry))
        self._digest = digest
        return ruled


@dataclass(slots=True)
class Check:
    """One rule, and the column of the answer that it is about.

    `recent` remembers which of the last rows had no value, for a null share alone.
    """

    column: int
    view: str
    rule: Rule
    recent: deque[bool] = field(default_factory=deque)
    empty: int = 0

    @property
    def name(self) -> str:
        """The feature's full name, and the rule: what an error says."""
        return f"{self.view}__{self.rule.feature} ({self.rule.kind})"

    def broken(self, column: Any) -> list[int]:
        """Return the rows of a `FeatureColumn` that break the rule."""
        if self.rule.kind == "null_share":
            return self._nulls(column.statuses)
        values = _values(column.values)
        if values is None:
            return []
        if self.rule.kind == "category":
            # With their kinds, because True == 1. What is stored may even be a list.
            allowed = {(type(one), one) for one in self.rule.allowed}
            bad = [
                n
                for n, v in enumerate(values)
                if not isinstance(v, bool | int | str) or (type(v), v) not in allowed
            ]
        else:
            low, high = self.rule.low, self.rule.high
            bad = [n for n, v in enumerate(values) if not _within(v, low, high)]
        return [n for n in bad if column.statuses[n] in _THERE] if bad else bad

    def _nulls(self, statuses: Sequence[int]) -> list[int]:
        """Return the rows without a value, while too many of the last rows had none.

        Rows of unknown entities don't count: whoever asks for them makes them.
        """
        bad = []
        for number, status in enumerate(statuses):
            if status not in _THERE and status not in _NONE:
                continue
            without = status in _NONE
            self.recent.append(without)
            self.empty += without
            if len(self.recent) > self.rule.rows:
                self.empty -= self.recent.popleft()
            full = len(self.recent) == self.rule.rows
            if without and full and self.empty > self.rule.max_share * self.rule.rows:
                bad.append(number)
        return bad


def _within(value: Any, low: float, high: float) -> bool:
    # What is stored need not be what the schema says. NaN is within no range.
    return isinstance(value, int | float) and low <= value <= high


def _values(column: Any) -> Sequence[Any] | None:
    array = column.WhichOneof("values")
    if array is None:
        return None
    if array != "mixed":
        values: Sequence[Any] = getattr(column, array).values
        return values
    kinds = [(value, value.WhichOneof("kind")) for value in column.mixed.values]
    return [None if kind is None else getattr(value, kind) for value, kind in kinds]


def checks_for(service: FeatureService, rules: Mapping[str, Sequence[Rule]]) -> tuple[Check, ...]:
    """Return the checks of a feature service's answers. A view's alias has the view's rules."""
    found = []
    for number, output in enumerate(service.outputs):
        names = {output.view}
        if output.stored is not None:
            names.add(service.reads[output.stored[0]].view)
        found += [
            Check(number, output.view, rule)
            for name in sorted(names)
            for rule in rules.get(name, ())
            if rule.feature == output.field.name
        ]
    return tuple(found)


def judge(
    checks: Sequence[Check], columns: Sequence[Any], within: Container[int] = ()
) -> dict[int, list[Check]]:
    """Return the broken rules of each row that breaks any; counts them.

    `within` are columns that are known to keep their ranges.
    """
    broken: dict[int, list[Check]] = {}
    for check in checks:
        if check.column in within and check.rule.kind == "range":
            continue
        rows = check.broken(columns[check.column])
        if rows:
            rule = check.rule
            action = "refuse" if rule.refuse else "mark"
            BROKEN.labels(check.view, rule.feature, rule.kind, action).inc(len(rows))
        for row in rows:
            broken.setdefault(row, []).append(check)
    return broken
