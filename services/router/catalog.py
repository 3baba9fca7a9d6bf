"""The catalog: tasks and policies from files, checked as a whole before any of it is used.

A set with a mistake is refused as a whole, with file, line and rule; the last good set stays in
force (see `CatalogKeeper`), and replies say so.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.chassis.files import FileError, digest_of, read_model
from services.router.cutover import Criteria
from services.router.filters import FilterSpec
from services.router.imputing import FOLDER, read_medians
from services.router.objective import Objective
from services.router.policy import Policy, PolicyFile, compile_policy
from services.router.quotas import QuotaFile, QuotaRule
from services.router.releases import ReleaseSpec
from services.router.text_schema import JsonSchema, TextSchema
from twinpath.inference import tensors

log = logging.getLogger(__name__)

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=128)]
DataClassName = Literal["public", "internal", "confidential", "restricted"]
DATA_CLASSES = {"public": 1, "internal": 2, "confidential": 3, "restricted": 4}


PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EntitySpec(_Strict):
    """Whom the task is about: a namespace for its ids, and the join keys with their types."""

    type: Name
    keys: dict[str, Literal["int64", "string"]] = Field(min_length=1)


class FieldSpec(_Strict):
    """A request-time field. Without a default it is required; a default of null is a null."""

    type: Literal["int64", "double", "bool", "string"]
    default: Any = Field(default=...)
    required: bool = False
    max_len: int = Field(default=1_048_576, ge=1, description="longest string, in code points")
    to: Literal["features", "input"] = "features"

    @model_validator(mode="before")
    @classmethod
    def _required_without_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and "default" not in data:
            return {**data, "default": None, "required": True}
        return data


class MissingFeatures(_Strict):
    """What the task does about a feature that is not PRESENT.

    `refuse` answers FAILED_PRECONDITION; `default` takes the feature's default below (and refuses
    where there is none); `impute` takes its median in the training data; `accept` uses a stale
    value. `store_away` is about the whole row, while the feature store does not answer: `refuse` is
    UNAVAILABLE, `default` decides on defaults alone.
    """

    absent_entity: Literal["refuse", "default", "impute"] = "refuse"
    absent_feature: Literal["refuse", "default", "impute"] = "refuse"
    null: Literal["refuse", "default", "impute"] = "refuse"
    stale: Literal["refuse", "default", "impute", "accept"] = "refuse"
    store_away: Literal["refuse", "default"] = "refuse"
    defaults: dict[str, float | int | str | bool] = Field(default_factory=dict)

    @property
    def imputes(self) -> bool:
        """Whether any of the rules needs training statistics."""
        return "impute" in (self.absent_entity, self.absent_feature, self.null, self.stale)


class InputSpec(_Strict):
    """One tensor of the model input, and where each of its elements comes from.

    Each source is a feature (`view__feature`), a request field (`field:name`), a text with
    request fields in it (`text:Summarize: {note}`), an entity key (`entity:name`, or `{name}` in a
    text) of which only a keyed pseudonym gets in, or a constant (`const:true`).
    """

    name: str
    datatype: Literal["FP32", "FP64", "INT32", "INT64", "BOOL", "BYTES"]
    shape: list[int] = Field(min_length=1)
    sources: list[str] = Field(alias="from", min_length=1)
    allow_nan: bool = False

    @model_validator(mode="after")
    def _fits(self) -> InputSpec:
        if tensors.element_count(self.shape) != len(self.sources):
            raise ValueError(f"shape {self.shape} does not hold {len(self.sources)} elements")
        return self


class ToleranceSpec(_Strict):
    """By how much a replayed output may differ: absolute + relative * |recorded|."""

    absolute: float = Field(default=0.0, ge=0, description="in the output's unit")
    relative: float = Field(default=0.0, ge=0, description="as a share of the recorded value")


class OutputSpec(_Strict):
    """One tensor of the output contract; the filter refuses what does not fit.

    `min` and `max` are for numbers; for each text `one_of`, `max_len` (characters), `json_schema`.
    Replays compare floating-point outputs within `tolerance`, and others for equality.
    """

    name: str
    datatype: Literal["FP32", "FP64", "INT32", "INT64", "BOOL", "BYTES"]
    shape: list[int]
    min: float | None = None
    max: float | None = None
    one_of: tuple[str, ...] = ()
    max_len: int | None = Field(default=None, ge=1)
    json_schema: JsonSchema | None = None
    tolerance: ToleranceSpec = Field(default_factory=ToleranceSpec)

    @cached_property
    def form(self) -> TextSchema | None:
        """What each text must be, if it must be JSON of one form."""
        return None if self.json_schema is None else TextSchema(self.json_schema)

    @property
    def rules_texts(self) -> bool:
        """Whether there is any rule for texts."""
        return bool(self.one_of or self.max_len or self.form)

    @model_validator(mode="after")
    def _rules_fit(self) -> OutputSpec:
        text, number = self.rules_texts, (self.min, self.max) != (None, None)
        if number if self.datatype == "BYTES" else text:
            rules = "min and max" if number else "one_of, max_len and json_schema"
            raise ValueError(f"{self.name} is {self.datatype}, which {rules} are not for")
        return self

    @model_validator(mode="after")
    def _only_floats_have_one(self) -> OutputSpec:
        if self.tolerance != ToleranceSpec() and self.datatype not in ("FP32", "FP64"):
            raise ValueError(f"{self.name} is compared for equality and can't have a tolerance")
        return self


# A local candidate's version may be "live": the one that serves now, which `twinpath models load`
# and `rollback` move. The board replaces it by that version before anything is planned.
LIVE = "live"


class CandidateSpec(_Strict):
    """One model at one version on one path."""

    id: Name
    path: Literal["local", "remote"]
    model: str
    version: str
    provider: str = ""
    region: str = ""
    cost_nanos_usd: int = Field(default=0, ge=0, description="expected cost of one call")
    quality: float = Field(default=0.5, ge=0, le=1, description="from the model card, 1 is best")
    budget_ms: float = Field(
        default=0.0,
        ge=0,
        description="what one inference may take; a local model's batching follows from it, see "
        "services/local/batching.py. 0: as the model repository says",
    )
    slow_after_s: float = Field(default=1.0, gt=0, description="a call that takes longer is slow")
    approvals: list[str] = Field(default_factory=list)
    bulk: bool = Field(default=False, description="batch jobs may ask it, if its vendor has them")
    cutover: Criteria | None = Field(default=None, description="this one's; none: the task's")

    @model_validator(mode="after")
    def _provider_fits_path(self) -> CandidateSpec:
        if (self.path == "remote") != bool(self.provider):
            raise ValueError("a remote candidate names its provider, a local one does not")
        if self.path == "local" and self.bulk:
            raise ValueError("only a remote candidate can be bulk; Triton has no batch price")
        if self.path == "remote" and self.version == LIVE:
            raise ValueError("only a local candidate's version can be live; vendors' versions move")
        if self.path == "remote" and self.budget_ms:
            raise ValueError("only a local candidate has a budget_ms, by which Triton batches")
        return self


Criterion = Literal["preference", "latency", "cost", "quality", "load"]


class ObjectiveSpec(_Strict):
    """In which order admitted candidates are tried; see services/router/objective.py."""

    order: tuple[Criterion, ...] = Field(default=("preference",), min_length=1)
    weights: dict[Criterion, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    explore: float = Field(default=0.0, ge=0, le=0.05, description="share of requests that explore")

    def plain(self) -> Objective:
        """Return it as the plan takes it."""
        weights = {str(name): weight for name, weight in self.weights.items()}
        return Objective(self.order, weights, self.explore)


class ResilienceSpec(_Strict):
    """What is tried when a candidate fails or is slow."""

    retries: int = Field(default=1, ge=0, le=3, description="more attempts on one candidate")
    hedge: bool = Field(default=False, description="ask the next candidate when the first is slow")
    attempt_share: float = Field(
        default=0.6, gt=0, le=1, description="share of the time left that a non-last attempt gets"
    )


class CacheSpec(_Strict):
    """Answers of this task may be kept, and given again for the same input."""

    ttl_s: float = Field(gt=0, le=86400, description="seconds for which an answer may be given")
    restricted: bool = Field(default=False, description="answers to restricted requests, too")


class Task(_Strict):
    """One task file."""

    name: Name
    version: str
    summary: str
    feature_service: str = ""
    entity: EntitySpec
    fields: dict[str, FieldSpec] = Field(default_factory=dict)
    data_class: DataClassName
    missing_features: MissingFeatures = Field(default_factory=MissingFeatures)
    inputs: list[InputSpec] = Field(min_length=1)
    outputs: list[OutputSpec] = Field(min_length=1)
    candidates: list[CandidateSpec] = Field(min_length=1)
    streaming: bool = Field(default=False, description="InferStream answers it, in chunks")
    audit_outage: Literal["refuse", "outbox"] = Field(
        default="refuse", description="refuse, or decide on with records in the local outbox"
    )
    objective: ObjectiveSpec = Field(default_factory=ObjectiveSpec)
    resilience: ResilienceSpec = Field(default_factory=ResilienceSpec)
    cache: CacheSpec | None = Field(default=None, description="none: no answer is kept")
    release: ReleaseSpec | None = Field(default=None, description="none: traffic is not split")
    cutover: Criteria | None = Field(default=None, description="when traffic goes to the others")
    filters: FilterSpec = Field(
        default_factory=FilterSpec, description="what is redacted, and looked for in outputs"
    )

    _medians: Mapping[str, float] = PrivateAttr(default_factory=dict)

    @property
    def medians(self) -> Mapping[str, float]:
        """The features' medians in the training data; empty where the task does not impute."""
        return self._medians

    def with_medians(self, folder: Path) -> Task:
        """Return the task with its training statistics, where it imputes.

        Raises:
            FileError: there are none, or not of all its features.
        """
        if not self.missing_features.imputes:
            return self
        sources = {s for spec in self.inputs for s in spec.sources if ":" not in s}
        made = self.model_copy()
        made._medians = read_medians(folder, self.name, sources)  # noqa: SLF001 - its own
        return made

    @field_validator("candidates")
    @classmethod
    def _unique(cls, value: list[CandidateSpec]) -> list[CandidateSpec]:
        ids = [candidate.id for candidate in value]
        twice = {i for i in ids if ids.count(i) > 1}
        if twice:
            raise ValueError(f"candidate ids stand twice: {', '.join(sorted(twice))}")
        return value

    @model_validator(mode="after")
    def _restricted_waits_for_the_log(self) -> Task:
        if self.data_class == "restricted" and self.audit_outage == "outbox":
            raise ValueError("a restricted task can't decide while the audit log is away")
        return self

    @model_validator(mode="after")
    def _cache_is_meant(self) -> Task:
        if self.cache is not None and self.data_class == "restricted" and not self.cache.restricted:
            raise ValueError("a restricted task's cache must say restricted: true, or not be there")
        if self.cache is not None and self.streaming:
            # A stream's chunks are the point of it; a kept answer would come in one piece.
            raise ValueError("a streaming task's answers can't be kept; take the cache out")
        return self

    @model_validator(mode="after")
    def _defaults_suffice(self) -> Task:
        rule = self.missing_features
        if rule.store_away == "default":
            if rule.absent_feature != "default":
                raise ValueError("store_away: default needs absent_feature: default")
            features = {s for spec in self.inputs for s in spec.sources if ":" not in s}
            lacking = sorted(features - rule.defaults.keys())
            if lacking:
                raise ValueError(f"store_away: default needs defaults of {', '.join(lacking)}")
        return self

    @model_validator(mode="after")
    def _arms_exist(self) -> Task:
        known = {candidate.id for candidate in self.candidates}
        unknown = self.release.unknown(known) if self.release is not None else []
        if unknown:
            raise ValueError(f"release: arms name {', '.join(unknown)}, which is no candidate")
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> Task:
        for spec in self.inputs:
            for source in spec.sources:
                kind, _, rest = source.partition(":")
                named = {
                    "field": [rest],
                    "text": PLACEHOLDER.findall(rest),
                    "entity": [rest],
                    "const": [],
                }
                if kind not in named and "__" not in source:
                    raise ValueError(f"{source} is neither view__feature nor field:name")
                for name in named.get(kind, []):
                    if kind == "entity" or (kind == "text" and name in self.entity.keys):
                        self._key_fits(spec, name)
                    elif name not in self.fields:
                        raise ValueError(f"input {spec.name} takes field {name}, which is no field")
        return self

    @field_validator("filters")
    @classmethod
    def _keys_exist(cls, value: FilterSpec, info: ValidationInfo) -> FilterSpec:
        keys = info.data["entity"].keys if "entity" in info.data else value.entity_keys
        for name in value.entity_keys:
            if name not in keys:
                raise ValueError(f"entity_keys: {name} is no key of this task's entity")
            if name in info.data.get("fields", {}):
                raise ValueError(f"entity_keys: {name} is a field, too, and can't be told from it")
        return value

    def _key_fits(self, spec: InputSpec, name: str) -> None:
        if name not in self.entity.keys:
            raise ValueError(f"input {spec.name} takes key {name}, which is no key of the entity")
        if name in self.fields:
            raise ValueError(f"{name} is a key and a field: input {spec.name} can't tell which")
        if spec.datatype != "BYTES" or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"input {spec.name}: only a text can hold a pseudonym of key {name}")

    @cached_property
    def pseudonymized(self) -> tuple[str, ...]:
        """The entity keys of which models get a pseudonym."""
        found = dict.fromkeys(self.filters.entity_keys)
        for source in (source for spec in self.inputs for source in spec.sources):
            kind, _, rest = source.partition(":")
            names = {"entity": [rest], "text": PLACEHOLDER.findall(rest)}.get(kind, [])
            found.update(dict.fromkeys(name for name in names if name in self.entity.keys))
        return tuple(found)

    @property
    def data_class_value(self) -> int:
        """The data class as the contract's number."""
        return DATA_CLASSES[self.data_class]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All tasks and the policy set, with the hashes of their files."""

    tasks: dict[str, Task]
    policy: Policy
    version: str
    quotas: tuple[QuotaRule, ...] = ()


def load_catalog(folder: Path) -> Catalog:
    """Read `tasks/*.yaml`, `policies/*.yaml`, and where there are any, `quotas.yaml`.

    Of tasks that impute, their `statistics/*.yaml` as well.

    Raises:
        FileError: with one line for each mistake in any file.
    """
    task_files = sorted((folder / "tasks").glob("*.yaml"))
    policy_files = sorted((folder / "policies").glob("*.yaml"))
    mistakes: list[str] = []
    if not task_files:
        mistakes.append(f"{folder / 'tasks'}:1: holds no task file")
    if not policy_files:
        mistakes.append(f"{folder / 'policies'}:1: holds no policy file; nothing would be admitted")
    tasks: dict[str, Task] = {}
    for path in task_files:
        try:
            task = read_model(path, Task).with_medians(folder)
        except FileError as error:
            mistakes.append(str(error))
            continue
        if path.stem != task.name:
            mistakes.append(f"{path}:1: the file must be named after its task, {task.name}.yaml")
        tasks[task.name] = task
    files: list[tuple[Path, PolicyFile]] = []
    for path in policy_files:
        try:
            files.append((path, read_model(path, PolicyFile)))
        except FileError as error:
            mistakes.append(str(error))
    quota_files = [path for path in (folder / "quotas.yaml",) if path.exists()]
    quotas: tuple[QuotaRule, ...] = ()
    for path in quota_files:
        try:
            quotas = tuple(read_model(path, QuotaFile).quotas)
        except FileError as error:
            mistakes.append(str(error))
    policy = None
    if not mistakes:
        try:
            policy = compile_policy(files, version=digest_of(policy_files, folder))
        except FileError as error:
            mistakes.append(str(error))
    if mistakes or policy is None:
        raise FileError("\n".join(mistakes))
    statistics = [folder / FOLDER / f"{t}.yaml" for t in sorted(tasks) if tasks[t].medians]
    version = digest_of([*task_files, *policy_files, *quota_files, *statistics], folder)
    return Catalog(tasks, policy, version, quotas)


class CatalogKeeper:
    """Holds the catalog in force; reads the files again, and keeps the last good set."""

    def __init__(self, folder: Path, interval_s: float) -> None:
        self._folder = folder
        self._interval = interval_s
        self.catalog = load_catalog(folder)  # at the start there is no last good set
        self.stale_reason = ""

    def reload(self) -> None:
        """Read the files; on a mistake keep what is in force and remember why."""
        try:
            self.catalog = load_catalog(self._folder)
        except FileError as error:
            if str(error) != self.stale_reason:
                log.error(
                    "the catalog is broken; the last good one stays", extra={"why": str(error)}
                )
            self.stale_reason = str(error)
            return
        self.stale_reason = ""

    def _stamp(self) -> tuple[tuple[str, int, int], ...]:
        files = sorted([*self._folder.glob("*/*.yaml"), *self._folder.glob("quotas.yaml")])
        return tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files)

    async def watch(self) -> None:
        """Look for changes until cancelled."""
        last = self._stamp()
        while True:
            await asyncio.sleep(self._interval)
            try:
                now = await asyncio.to_thread(self._stamp)
            except OSError:
                continue  # a file went away between two looks
            if now != last:
                last = now
                before = self.catalog.version
                await asyncio.to_thread(self.reload)
                if self.catalog.version != before:
                    log.info("catalog changed", extra={"version": self.catalog.version})
