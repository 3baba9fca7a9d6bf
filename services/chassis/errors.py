"""Every error that a caller can meet: gRPC code, stable reason, metadata.

    ServiceError
    ├── InvalidArgumentError     the request is wrong, whatever the state; names each field
    ├── UnauthenticatedError     no identity, or one that does not verify
    ├── PermissionDeniedError    a known identity that may not, or a policy that says no
    ├── NotFoundError            a name that does not exist
    ├── AlreadyExistsError       another came first
    ├── FailedPreconditionError  the state does not allow it; a retry as it is won't help
    ├── AbortedError             lost a race; a retry may help
    ├── ResourceExhaustedError   too much or too large; may say when to come back
    ├── DeadlineExceededError    the caller's time is up
    ├── UnavailableError         a dependency is away; may say when to come back
    ├── UnimplementedError       not offered here
    ├── DataLossError            what arrived is not what was sent
    ├── CancelledError           the caller went away
    └── InternalError            our fault; the details stay in the log

Services raise these and nothing else; one interceptor turns them into google.rpc.Status with
ErrorInfo, BadRequest and RetryInfo. Nobody answers UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "twinpath"

_MAX_MESSAGE = 2048  # status details travel in headers, which are limited


class ServiceError(Exception):
    """An error with a place in the table above.

    `reason` is UPPER_SNAKE and stable: programs may compare it. `metadata` holds names, never
    values from an input. `retry_after` is in seconds.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[tuple[str, str]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = list(violations)
        self.retry_after = retry_after


class InvalidArgumentError(ServiceError):
    """The request is wrong. `violations` are (field, description)."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class UnauthenticatedError(ServiceError):
    """No identity, or one that does not verify."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(ServiceError):
    """A known identity that may not, or a policy that says no."""

    code = grpc.StatusCode.PERMISSION_DENIED


class NotFoundError(ServiceError):
    """A name that does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(ServiceError):
    """Another came first."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(ServiceError):
    """The state does not allow it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(ServiceError):
    """Lost a race."""

    code = grpc.StatusCode.ABORTED


class ResourceExhaustedError(ServiceError):
    """Too much, or too large."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceededError(ServiceError):
    """The caller's time is up."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(ServiceError):
    """A dependency is away."""

    code = grpc.StatusCode.UNAVAILABLE


class UnimplementedError(ServiceError):
    """Not offered here."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DataLossError(ServiceError):
    """What arrived is not what was sent."""

    code = grpc.StatusCode.DATA_LOSS


class CancelledError(ServiceError):
    """The caller went away."""

    code = grpc.StatusCode.CANCELLED


class InternalError(ServiceError):
    """Our fault."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[int, type[ServiceError]] = {
    kind.code.value[0]: kind for kind in ServiceError.__subclasses__()
}


def to_status(error: BaseException) -> status_pb2.Status:
    """Return the google.rpc.Status of any exception.

    What is not a ServiceError becomes INTERNAL without its text: the text may hold data.
    """
    if not isinstance(error, ServiceError):
        error = InternalError("INTERNAL", "internal error; the service's log has the details")
    status = status_pb2.Status(code=error.code.value[0], message=error.message[:_MAX_MESSAGE])
    _add(
        status,
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata),
    )
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
            for field, text in error.violations[:32]
        ]
        _add(status, error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _add(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)


def from_status(status: status_pb2.Status) -> ServiceError | None:
    """Return the error that a status carries; None for OK. UNKNOWN becomes INTERNAL."""
    if status.code == 0:
        return None
    kind = _BY_CODE.get(status.code, InternalError)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            detail.Unpack(bad)
    return kind(
        info.reason or kind.code.name,
        status.message,
        metadata=dict(info.metadata),
        violations=[(v.field, v.description) for v in bad.field_violations],
        retry_after=retry_after,
    )


def from_rpc_error(error: grpc.RpcError) -> ServiceError:
    """Return what a failed call says, with its details; the code is kept."""
    code = error.code()
    status = None
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that don't fit the code: believe the code
        status = None
    if status is not None:
        found = from_status(status)
        if found is not None:
            return found
    kind = _BY_CODE.get(code.value[0], InternalError)
    return kind(code.name, error.details() or code.name)
