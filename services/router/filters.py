"""The filters of a task's file: what is redacted before a model, what is looked for after it.

    filters:
      patterns: {case_number: 'CASE-[0-9]{6}'}   # finders of one's own, by name
      redact: [pii, secret, case_number]         # in texts for models; put back in the answer
      entity_keys: [note_id]                     # also where the key's value stands in a text
      output: {pii: mask, secret: refuse, markup: mask}

Finders: `card`, `iban`, `email`, `phone`, `national_id`, `secret` (see
twinpath.inference.detectors), `pii` for all of them but `secret`, and the names of `patterns`; for
outputs also `markup`. All of it is compiled when the catalog is loaded; a task without filters
costs a look at an empty tuple. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from re import _parser  # type: ignore[attr-defined]
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.router import markup
from twinpath.inference import detectors

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Action = Literal["refuse", "mask"]
Span = tuple[int, int]

PII = tuple(name for name in detectors.NAMES if name != "secret")
MARKUP = "markup"
_LONGEST = 1024  # characters that a pattern of one's own may match
_OWN_NAMES = frozenset({*detectors.NAMES, "pii", MARKUP})


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds one kind of thing.

    Attributes:
        kind: Its name.
        spans: Where it begins and ends in a text, from a place on, in a text that goes on from one
            in which a tag began (or not).
        reach: How far a find may reach over blanks, in characters.
    """

    kind: str
    spans: Callable[[str, int, bool], Iterator[Span]]
    reach: int


@dataclass(frozen=True, slots=True)
class Find:
    """One place of a text: where, and what it is."""

    start: int
    end: int
    kind: str


def _checked_pattern(pattern: str) -> str:
    """Refuse what can't be searched for piece by piece.

    Raises:
        ValueError: it does not compile, fits the empty text, or has no greatest length.
    """
    try:
        re.compile(pattern)
        shortest, longest = _parser.parse(pattern).getwidth()
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no pattern: {error}") from None
    if shortest == 0:
        raise ValueError("fits the empty text, so it would be found everywhere")
    if longest > _LONGEST:
        raise ValueError(
            f"may fit more than {_LONGEST} characters: bound its repeats, as {{1,64}} instead of +"
        )
    return pattern


Pattern = Annotated[str, AfterValidator(_checked_pattern)]


class FilterSpec(BaseModel):
    """The keys of a task's `filters`; see the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patterns: dict[Name, Pattern] = Field(default_factory=dict)
    redact: tuple[str, ...] = ()
    entity_keys: tuple[Name, ...] = ()
    output: dict[str, Action] = Field(default_factory=dict)

    @field_validator("patterns")
    @classmethod
    def _not_taken(cls, value: dict[str, str]) -> dict[str, str]:
        taken = sorted(_OWN_NAMES & value.keys())
        if taken:
            raise ValueError(f"a pattern can't be called {taken[0]}: that is a finder already")
        return value

    @field_validator("redact", "output")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        if "patterns" not in info.data:
            return value  # they have a mistake, and it is told
        known = {*_OWN_NAMES, *info.data["patterns"]}
        if info.field_name == "redact":
            known.discard(MARKUP)
        unknown = [kind for kind in value if kind not in known]
        if unknown:
            there_are = ", ".join(sorted(known))
            raise ValueError(f"there is no finder {unknown[0]!r} for this; there are: {there_are}")
        return value

    @cached_property
    def redacting(self) -> tuple[Finder, ...]:
        """What is redacted. Empty: nothing."""
        return tuple(self._finder(kind) for kind in _each(self.redact))

    @cached_property
    def policy(self) -> OutputPolicy | None:
        """What is looked for in outputs. None: nothing."""
        actions: dict[str, Action] = {}
        # A kind's own word wins over that of `pii`.
        for kind, action in sorted(self.output.items(), key=lambda item: item[0] != "pii"):
            actions.update(dict.fromkeys(_each([kind]), action))
        if not actions:
            return None
        return OutputPolicy(tuple(self._finder(kind) for kind in actions), actions)

    @model_validator(mode="after")
    def _compiled(self) -> FilterSpec:
        _ = self.redacting, self.policy  # made now: no request is to wait for it
        return self

    def _finder(self, kind: str) -> Finder:
        if kind in self.patterns:
            pattern = re.compile(self.patterns[kind])
            reach = _parser.parse(self.patterns[kind]).getwidth()[1]
            return Finder(kind, partial(_search, pattern), reach)
        if kind == MARKUP:
            return Finder(kind, _markup, markup.REACH)
        return Finder(kind, partial(_detect, kind), detectors.REACH[kind])  # type: ignore[index]


def _each(kinds: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for kind in kinds:
        found.update(dict.fromkeys(PII if kind == "pii" else (kind,)))
    return list(found)


def _search(pattern: re.Pattern[str], text: str, at: int, _tags: bool) -> Iterator[Span]:
    for found in pattern.finditer(text, at):
        yield found.span()


def _detect(kind: Any, text: str, at: int, _tags: bool) -> Iterator[Span]:
    return detectors.spans(kind, text, at)


def _markup(text: str, at: int, tags: bool) -> Iterator[Span]:
    return markup.spans(text, at, in_tags=tags)


def find_all(
    finders: Sequence[Finder],
    text: str,
    at: int = 0,
    *,
    in_tags: bool = False,
    first: Collection[str] = (),
) -> list[Find]:
    """Return what is found from `at` on, in order; what overlaps is one find.

    So no part of something found is left over beside a neighbour that was cut out. Its kind is one
    of `first` if any of them is, else that of the longest.
    """
    found = [
        Find(start, end, finder.kind)
        for finder in finders
        for start, end in finder.spans(text, at, in_tags)
    ]
    if len(found) <= 1:
        return found
    found.sort(key=lambda find: (find.start, -find.end))
    joined: list[list[Find]] = []
    end = -1
    for find in found:
        if find.start < end:
            joined[-1].append(find)
        else:
            joined.append([find])
        end = max(end, find.end)
    return [_join(group, first) for group in joined]


def _join(group: Sequence[Find], first: Collection[str]) -> Find:
    best = max(group, key=lambda find: (find.kind in first, find.end - find.start))
    return Find(group[0].start, max(find.end for find in group), best.kind)


@dataclass(frozen=True, slots=True)
class OutputPolicy:
    """What must not be in an output's text, and what is done about it."""

    finders: tuple[Finder, ...]
    actions: dict[str, Action]

    @property
    def reach(self) -> int:
        """How far a find may reach over blanks, in characters."""
        return max(finder.reach for finder in self.finders)

    def find(self, text: str, at: int = 0, *, in_tags: bool = False) -> list[Find]:
        """Return what is in a text from `at` on; of what overlaps, what is refused counts."""
        refusing = [kind for kind, action in self.actions.items() if action == "refuse"]
        return find_all(self.finders, text, at, in_tags=in_tags, first=refusing)

    def refused(self, finds: Iterable[Find]) -> list[str]:
        """Return the kinds that are refused, one for each find."""
        return [find.kind for find in finds if self.actions[find.kind] == "refuse"]


def masked(text: str, finds: Iterable[Find], start: int = 0, end: int | None = None) -> str:
    """Return a text from `start` to `end` with each find replaced by its kind, as `[EMAIL]`."""
    parts = []
    for find in finds:
        parts += [text[start : find.start], f"[{find.kind.upper()}]"]
        start = find.end
    parts.append(text[start:end])
    return "".join(parts)


def counted(what: str, kinds: Iterable[str]) -> tuple[str, ...]:
    """Return what was done as records and replies say it, such as `redacted:email=2`."""
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    return tuple(f"{what}:{kind}={count}" for kind, count in sorted(counts.items()))
