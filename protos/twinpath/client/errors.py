"""What can go wrong with a call, as exceptions.

    TwinpathError
    ├── InvalidArgumentError     the request is wrong; `violations` name each field
    ├── UnauthenticatedError     no token, or one that does not verify
    ├── PermissionDeniedError    you may not, or a policy says no (reason POLICY_REFUSED)
    ├── NotFoundError            no such task or entity
    ├── FailedPreconditionError  a repetition as it is won't help (IDEMPOTENCY_KEY_REUSED, ...)
    ├── AbortedError             lost a race; a repetition may help
    ├── ResourceExhaustedError   too much; `retry_after` says when to come back
    ├── DeadlineExceededError    the time is up; whether a decision was made is not known
    ├── UnavailableError         the mesh, or all of a task's candidates, are away
    ├── DataLossError            what arrived is not what was sent
    ├── InternalError            a fault of the mesh, and any code that is not listed here
    ├── CancelledError           the call was cancelled
    ├── UnimplementedError       not offered, such as a stream of a task that does not stream
    └── StreamCutError           a stream ended without its final message

Details travel as google.rpc.Status in the trailer `grpc-status-details-bin`; it is read here,
so that no further package is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from twinpath.client.replies import Chunk

_DETAILS = "grpc-status-details-bin"


class Violation(NamedTuple):
    """One wrong field of a request."""

    field: str
    description: str


class TwinpathError(Exception):
    """A call that failed.

    Attributes:
        code: The gRPC code.
        reason: UPPER_SNAKE and stable: compare this. The code's name where the mesh gave none,
            such as when it could not be reached.
        message: For people.
        metadata: Names that belong to the reason, such as each candidate's.
        violations: The wrong fields, for InvalidArgumentError.
        retry_after: Seconds after which a repetition makes sense; None: nothing was said.
        described: True: the mesh itself gave the reason; False: the transport failed.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
        described: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.described = described

    def __str__(self) -> str:
        wrong = "".join(f"\n  {v.field}: {v.description}" for v in self.violations)
        return f"{self.reason}: {self.message}{wrong}"


class InvalidArgumentError(TwinpathError):
    """The request is wrong."""


class UnauthenticatedError(TwinpathError):
    """No token, or one that does not verify."""


class PermissionDeniedError(TwinpathError):
    """You may not, or a policy says no."""


class NotFoundError(TwinpathError):
    """A name that does not exist."""


class FailedPreconditionError(TwinpathError):
    """The state does not allow it."""


class AbortedError(TwinpathError):
    """Lost a race."""


class ResourceExhaustedError(TwinpathError):
    """Too much."""


class DeadlineExceededError(TwinpathError):
    """The time is up. Ask again with the same idempotency key to learn what was decided."""


class UnavailableError(TwinpathError):
    """Nobody could answer."""


class DataLossError(TwinpathError):
    """What arrived is not what was sent."""


class InternalError(TwinpathError):
    """A fault of the mesh."""


class CancelledError(TwinpathError):
    """The call was cancelled."""


class UnimplementedError(TwinpathError):
    """Not offered."""


class StreamCutError(TwinpathError):
    """A stream ended without its final message: what came is no decision.

    Attributes:
        received: The chunks that came before.
        cause: What ended it; None when it just ended.
    """

    def __init__(self, received: Sequence[Chunk], cause: TwinpathError | None) -> None:
        super().__init__(
            cause.code if cause else grpc.StatusCode.DATA_LOSS,
            "STREAM_CUT",
            f"the stream was cut after {len(received)} chunks"
            + (f" ({cause.reason}: {cause.message})" if cause else ""),
            metadata=cause.metadata if cause else None,
            retry_after=cause.retry_after if cause else None,
            described=cause.described if cause else False,
        )
        self.received = tuple(received)
        self.cause = cause


_BY_CODE: dict[grpc.StatusCode, type[TwinpathError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc_error(error: Any) -> TwinpathError:
    """Return what a failed call says. Takes the errors of grpc and of grpc.aio."""
    code: grpc.StatusCode = error.code()
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            status = status_pb2.Status()
            # Details that don't parse, or belong to another code, are not believed.
            with contextlib.suppress(DecodeError):
                status.ParseFromString(value)
                if status.code == code.value[0]:
                    return from_status(status)
    return _BY_CODE.get(code, InternalError)(code, code.name, error.details() or code.name)


def from_status(status: status_pb2.Status) -> TwinpathError:
    """Return the error that a status other than OK stands for."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        with contextlib.suppress(DecodeError):
            detail.Unpack(info)
            detail.Unpack(bad)
            if detail.Unpack(retry):
                retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return _BY_CODE.get(code, InternalError)(
        code,
        info.reason or code.name,
        status.message,
        metadata=info.metadata,
        violations=[Violation(v.field, v.description) for v in bad.field_violations],
        retry_after=retry_after,
        described=bool(info.reason),
    )
