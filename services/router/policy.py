"""Policy: rules in CEL that a candidate must pass, all of them. Pure.

A rule is one boolean expression that must be true for a candidate to be admitted. A rule that
errors, or gives anything but true, excludes: sensitive data fails closed. What a rule may read:

    data_class   a number; compare it with PUBLIC < INTERNAL < CONFIDENTIAL < RESTRICTED
    task, tenant, caller, purpose, residency, priority   strings ("" when not given)
    consents     a list of strings
    candidate    id, path ("local" or "remote"), model, version, provider, region, approvals

Results are remembered by the facts that the rule reads, so a rule about the request alone is
evaluated once for it, and most requests evaluate nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cel
from pydantic import BaseModel, ConfigDict, Field

from services.chassis.files import FileError, line_of, load_yaml

CLASSES = {"PUBLIC": 1, "INTERNAL": 2, "CONFIDENTIAL": 3, "RESTRICTED": 4}
REQUEST_FACTS = (
    "data_class",
    "task",
    "tenant",
    "caller",
    "purpose",
    "residency",
    "consents",
    "priority",
)
CANDIDATE_FACTS = ("id", "path", "model", "version", "provider", "region", "approvals")
_MEMORY = 65536


class RuleFile(BaseModel):
    """One rule of a policy file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)
    message: str = Field(min_length=1, max_length=256)
    require: str = Field(min_length=1, max_length=2048)
    tasks: list[str] = Field(default_factory=list, description="only these tasks; empty: all")


class PolicyFile(BaseModel):
    """A policy file: rules that all must hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[RuleFile] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a rule excludes a candidate."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule. `reads` are the request facts it names, `of_candidate` if it reads that."""

    id: str
    message: str
    tasks: frozenset[str]
    program: Any
    reads: tuple[str, ...]
    of_candidate: bool


@dataclass(slots=True)
class Policy:
    """A compiled policy set."""

    rules: tuple[Rule, ...]
    version: str
    _memory: dict[tuple[Any, ...], Denial | None] = field(default_factory=dict)
    _whole: dict[tuple[Any, ...], tuple[Denial, ...]] = field(default_factory=dict)
    _reads: tuple[str, ...] = field(init=False)
    _ids: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note which request facts any rule reads; the task decides which rules count."""
        read = {name for rule in self.rules for name in rule.reads} | {"task"}
        self._reads = tuple(name for name in REQUEST_FACTS if name in read)

    def all_denials(
        self, facts: Mapping[str, Any], candidates: Sequence[tuple[Mapping[str, Any], str]]
    ) -> list[tuple[Denial, ...]]:
        """Return what `denials` does for several candidates, each with its facts and their key.

        Most requests have been seen before as far as the rules can tell: one look-up for each.
        """
        read = tuple([facts[name] for name in self._reads])
        found = []
        for candidate, key in candidates:
            place = (key, read)
            denials = self._whole.get(place)
            if denials is None:
                denials = tuple(self.denials(facts, candidate, key))
                if len(self._whole) >= _MEMORY:
                    self._whole.clear()
                self._whole[place] = denials
            found.append(denials)
        return found

    def ids(self, task: str) -> tuple[str, ...]:
        """Return the ids of the rules that count for a task, in their order."""
        found = self._ids.get(task)
        if found is None:
            found = tuple(rule.id for rule in self.rules if not rule.tasks or task in rule.tasks)
            self._ids[task] = found
        return found

    def forget(self) -> None:
        """Forget all results: the next ones are evaluated anew."""
        self._memory.clear()
        self._whole.clear()

    def denials(
        self, facts: Mapping[str, Any], candidate: Mapping[str, Any], key: str
    ) -> list[Denial]:
        """Return every rule that excludes the candidate; empty: admitted.

        `facts` has every name of REQUEST_FACTS (`consents` a tuple); `key` is the
        content of the candidate's own facts: remembered results are found by it.
        """
        found = []
        for rule in self.rules:
            if rule.tasks and facts["task"] not in rule.tasks:
                continue
            place = (rule.id, key if rule.of_candidate else "", *(facts[n] for n in rule.reads))
            try:
                denial = self._memory[place]
            except KeyError:
                denial = _evaluate(rule, facts, candidate)
                if len(self._memory) >= _MEMORY:
                    self._memory.clear()
                self._memory[place] = denial
            if denial is not None:
                found.append(denial)
        return found


def _evaluate(rule: Rule, facts: Mapping[str, Any], candidate: Mapping[str, Any]) -> Denial | None:
    context = cel.Context()
    context.update({**CLASSES, **{name: facts[name] for name in rule.reads}})
    if "consents" in rule.reads:
        context.add_variable("consents", list(facts["consents"]))
    if rule.of_candidate:
        context.add_variable("candidate", dict(candidate))
    try:
        passed = rule.program.execute(context)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the rule did not pass
        return Denial(rule.id, f"{rule.message} (the rule failed: {type(error).__name__})")
    if passed is True:
        return None
    return Denial(rule.id, rule.message)


def compile_policy(files: Sequence[tuple[Path, PolicyFile]], version: str) -> Policy:
    """Compile the rules of all files, in order.

    Raises:
        FileError: a rule does not compile, names an unknown fact, or its id stands twice.
    """
    rules: list[Rule] = []
    mistakes: list[str] = []
    known = {*REQUEST_FACTS, *CLASSES, "candidate"}
    seen: dict[str, str] = {}
    for path, content in files:
        data = load_yaml(path)
        for index, rule in enumerate(content.rules):
            line = line_of(data, ("rules", index, "require"))
            place = f"{path}:{line}: {rule.id}"
            if rule.id in seen:
                mistakes.append(f"{place}: the id stands in {seen[rule.id]} already")
                continue
            seen[rule.id] = str(path)
            try:
                program = cel.compile(rule.require)
            except ValueError as error:
                mistakes.append(f"{place}: {' '.join(str(error).split())[:300]}")
                continue
            unknown = sorted(set(program.variables()) - known)
            if unknown:
                mistakes.append(f"{place}: unknown fact {', '.join(unknown)}")
                continue
            bad = _unknown_members(rule.require)
            if bad:
                mistakes.append(f"{place}: unknown fact candidate.{', candidate.'.join(bad)}")
                continue
            reads = tuple(name for name in REQUEST_FACTS if name in program.variables())
            of_candidate = "candidate" in program.variables()
            tasks = frozenset(rule.tasks)
            rules.append(Rule(rule.id, rule.message, tasks, program, reads, of_candidate))
    if mistakes:
        raise FileError("\n".join(mistakes))
    return Policy(tuple(rules), version)


def _unknown_members(expression: str) -> list[str]:
    """Return the members of `candidate` that an expression names and that don't exist."""
    bad = []
    for part in expression.split("candidate.")[1:]:
        name = ""
        for char in part:
            if not (char.isalnum() or char == "_"):
                break
            name += char
        if name not in CANDIDATE_FACTS:
            bad.append(name)
    return sorted(set(bad))
