"""Faults that the stand-in vendor plays: asked for by a request's header, or by a schedule."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

FAULT_HEADER = "x-standin-fault"

Kind = Literal[
    "error",  # an error answer with `status`
    "rate_limit",  # 429 with `retry_after`, either kind of it (seconds or an HTTP date)
    "hang",  # the request is taken and never answered, for `delay_ms` at most
    "slow",  # the answer comes `delay_ms` late
    "drip",  # the answer's head comes at once, its body in pieces over `delay_ms`
    "reset",  # the connection is reset before an answer
    "cut",  # the connection is reset in the middle of the answer's body
    "truncated",  # a complete HTTP answer whose JSON ends in the middle
    "wrong_content_type",  # the right answer, said to be text/html
    "garbage",  # status 200 and bytes that are no JSON
    "error_inside",  # status 200 with an error in the body
    "wrong_outputs",  # status 200 with an output that nobody asked for in place of the real ones
    "version_drift",  # the right answer, from a model version with `version` for a name
    "cache_write",  # the right answer; some tokens in count as written to the vendor's cache
    "last_one",  # the right answer, with headers that allow no more for `retry_after`
    "refusal",  # a language model says that it won't answer
    "content_filter",  # the content policy stops the answer
    "length",  # the length limit cuts the answer
    "long",  # a chat model says its answer `times` over, past any limit that it was given
    "stall",  # the first events of a stream, then silence for `delay_ms`
    "no_end",  # a stream that ends as if it were whole, before its protocol's end
    "outage",  # connections are refused: the port is closed while this is in force
]


class Fault(BaseModel):
    """One fault and its parameters; see `Kind`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    status: int = Field(default=503, ge=400, le=599)
    retry_after: str | None = None
    delay_ms: float = Field(default=600_000, ge=0)
    message: str = "the stand-in vendor was told to fail"
    version: str = "999"
    code: str = ""  # the protocol's own code of an error
    times: int = Field(default=1, ge=1)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the header's form, `kind;key=value;key=value`; raises ValueError."""
        kind, *pairs = (part.strip() for part in text.split(";"))
        values: dict[str, str] = {"kind": kind}
        for pair in pairs:
            key, found, value = pair.partition("=")
            if not found:
                raise ValueError(f"{FAULT_HEADER}: {pair!r} is not key=value")
            values[key.strip()] = value.strip()
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{FAULT_HEADER}: {error.errors()[0]['msg']}") from error


class Rule(BaseModel):
    """When a fault is in force.

    Attributes:
        fault: What happens.
        start_s: Seconds from the posting of the schedule until it begins.
        for_s: For how long; None: until the schedule is replaced.
        count: For how many requests at most; None: for all in that time.
        probability: Of each request to be hit.
        model: Requests for this model only; None: all models.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fault: Fault
    start_s: float = Field(default=0.0, ge=0)
    for_s: float | None = Field(default=None, gt=0)
    count: int | None = Field(default=None, ge=1)
    probability: float = Field(default=1.0, gt=0, le=1)
    model: str | None = None

    @field_validator("fault", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return Fault.parse(value) if isinstance(value, str) else value


class Schedule:
    """The rules in force; the first one that fits a request decides.

    Args:
        clock: Monotonic seconds.
        seed: Of the draws for rules with a probability.
    """

    def __init__(self, clock: Callable[[], float], seed: int = 0) -> None:
        self._clock = clock
        self._seed = seed
        self.replace([])

    @property
    def rules(self) -> tuple[Rule, ...]:
        """As they were posted."""
        return self._rules

    def replace(self, rules: Sequence[Rule]) -> None:
        """Put these rules in force; their times begin now, and so does the random sequence."""
        self._rules = tuple(rules)
        self._left = [rule.count for rule in self._rules]
        self._posted = self._clock()
        self._random = random.Random(self._seed)  # noqa: S311 - faults, not secrets

    def draw(self, model: str | None) -> Fault | None:
        """The fault for a request that arrives now; counts it."""
        for position, rule in enumerate(self._rules):
            left = self._left[position]
            if rule.fault.kind == "outage" or left == 0 or not self._in_force(rule):
                continue
            if rule.model not in (None, model):
                continue
            if rule.probability < 1 and self._random.random() >= rule.probability:
                continue
            if left is not None:
                self._left[position] = left - 1
            return rule.fault
        return None

    def outage(self) -> bool:
        """Whether the public port should be closed now."""
        return any(rule.fault.kind == "outage" and self._in_force(rule) for rule in self._rules)

    def _in_force(self, rule: Rule) -> bool:
        age = self._clock() - self._posted - rule.start_s
        return age >= 0 and (rule.for_s is None or age < rule.for_s)
