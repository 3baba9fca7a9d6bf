"""What Triton's errors mean: one table from its codes and texts to our statuses and reasons.

Triton says many things with one code, so some rows look at its text too; the first row that fits
counts. Its text is never passed on: a model's own message may hold a value from the input.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import grpc

from services.chassis.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
    UnimplementedError,
)

Code = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `text` is a regular expression that is searched in Triton's text; empty: any text.
    `elsewhere` is true where another replica may well answer. `retry_after` is in seconds.
    """

    code: Code
    text: str
    kind: type[ServiceError]
    reason: str
    message: str
    elsewhere: bool = False
    retry_after: float | None = None


TABLE: tuple[Row, ...] = (
    Row(
        Code.UNAVAILABLE,
        r"Exceeds maximum queue size",
        ResourceExhaustedError,
        "TRITON_QUEUE_FULL",
        "the model's queue is full",
        elsewhere=True,
        retry_after=0.1,
    ),
    Row(
        Code.UNAVAILABLE,
        r"Request timeout expired",
        DeadlineExceededError,
        "TRITON_QUEUE_TIMEOUT",
        "the time was up in the model's queue",
    ),
    Row(
        Code.UNAVAILABLE,
        r"unknown model: .* (has no available versions|is not at ready state)",
        UnavailableError,
        "MODEL_UNAVAILABLE",
        "the model is not loaded",
        elsewhere=True,
        retry_after=1.0,
    ),
    Row(
        Code.UNAVAILABLE,
        "",
        UnavailableError,
        "TRITON_UNAVAILABLE",
        "Triton does not answer",
        elsewhere=True,
        retry_after=1.0,
    ),
    Row(
        Code.NOT_FOUND,
        "",
        NotFoundError,
        "MODEL_UNKNOWN",
        "Triton has no such model or version",
        elsewhere=True,
    ),
    Row(
        Code.INVALID_ARGUMENT,
        "",
        InvalidArgumentError,
        "MODEL_REFUSED_INPUT",
        "the model refuses the input",
    ),
    Row(
        Code.DEADLINE_EXCEEDED,
        "",
        DeadlineExceededError,
        "TRITON_TIMEOUT",
        "Triton did not answer in time",
    ),
    Row(
        Code.RESOURCE_EXHAUSTED,
        "",
        ResourceExhaustedError,
        "TRITON_MESSAGE_TOO_LARGE",
        "the input or the output is larger than Triton's connection carries",
    ),
    Row(
        Code.INTERNAL,
        r"Stub process .* is not healthy",
        UnavailableError,
        "MODEL_UNAVAILABLE",
        "the model's process has ended",
        elsewhere=True,
        retry_after=1.0,
    ),
    Row(
        Code.INTERNAL,
        r"(?i)out of memory|failed to allocate",
        ResourceExhaustedError,
        "TRITON_OUT_OF_MEMORY",
        "Triton has no memory for this",
        elsewhere=True,
    ),
    Row(Code.INTERNAL, "", InternalError, "MODEL_FAILED", "the model failed"),
    Row(Code.UNKNOWN, "", InternalError, "MODEL_FAILED", "the model failed"),
    Row(
        Code.UNIMPLEMENTED,
        "",
        UnimplementedError,
        "TRITON_UNSUPPORTED",
        "this Triton does not offer what the model needs",
    ),
    # From Triton's side only: when our own caller goes away, the task is cancelled.
    Row(
        Code.CANCELLED,
        "",
        UnavailableError,
        "TRITON_UNAVAILABLE",
        "Triton cancelled the call",
        elsewhere=True,
        retry_after=1.0,
    ),
    Row(
        Code.UNAUTHENTICATED,
        "",
        FailedPreconditionError,
        "TRITON_REFUSED",
        "Triton's door refuses this service",
    ),
    Row(
        Code.PERMISSION_DENIED,
        "",
        FailedPreconditionError,
        "TRITON_REFUSED",
        "Triton's door refuses this service",
    ),
)
_OTHER = Row(Code.UNKNOWN, "", InternalError, "TRITON_FAILED", "Triton failed")


class TritonError(Exception):
    """A call of Triton that failed: the error for the caller, and whether to try elsewhere."""

    def __init__(self, error: ServiceError, *, elsewhere: bool) -> None:
        super().__init__(f"{error.reason}: {error.message}")
        self.error = error
        self.elsewhere = elsewhere


def translate(code: Code, text: str, *, model: str = "", version: str = "") -> TritonError:
    """Return the error that stands in the table for Triton's code and text."""
    row = next((r for r in TABLE if r.code is code and re.search(r.text, text)), _OTHER)
    about = {"model": model, "version": version}
    error = row.kind(
        row.reason,
        row.message,
        metadata={name: value for name, value in about.items() if value},
        retry_after=row.retry_after,
    )
    return TritonError(error, elsewhere=row.elsewhere)
