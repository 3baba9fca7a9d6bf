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

Services raise these and nothing else; the boundary around every handler turns them into
google.rpc.Status with ErrorInfo, BadRequest and RetryInfo. Nobody answers UNKNOWN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "twinpath"

# A status travels in trailers, and gRPC refuses trailers above 8 KiB: the message stands there
# twice (once percent-encoded, up to three times its bytes), the details in base64.
_MAX_MESSAGE = 800
_MAX_DETAILS = 3_600
_MAX_FIELD = 160
_MAX_DESCRIPTION = 400


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
        self.metadata = {name: str(value) for name, value in (metadata or {}).items()}
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
    status = status_pb2.Status(code=error.code.value[0], message=_cut(error.message, _MAX_MESSAGE))
    metadata = {
        _cut(name, _MAX_FIELD): _cut(value, _MAX_FIELD)
        for name, value in list(error.metadata.items())[:8]
    }
    _add(
        status,
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata),
    )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations:
        room = _MAX_DETAILS - status.ByteSize()
        _add(status, _bad_request(error.violations, room))
    return status


def _bad_request(violations: Sequence[tuple[str, str]], room: int) -> error_details_pb2.BadRequest:
    """Return as many violations as have room, in bytes; the last one counts those left out."""
    bad = error_details_pb2.BadRequest()
    for index, (field, text) in enumerate(violations):
        one = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(field, _MAX_FIELD), description=_cut(text, _MAX_DESCRIPTION)
        )
        room -= one.ByteSize() + 4
        if index and room < 0:
            left = len(violations) - index
            bad.field_violations.add(description=f"{left} more violations")
            break
        bad.field_violations.append(one)
    return bad


def _cut(text: str, limit: int) -> str:
    """Return text of at most `limit` bytes of valid UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 3].decode("utf-8", "ignore") + "..."


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def from_status(status: status_pb2.Status) -> ServiceError | None:
    """Return the error that a status carries; None for OK.

    A code without a class, UNKNOWN above all, becomes INTERNAL.
    """
    if status.code == 0:
        return None
    kind = _BY_CODE.get(status.code, InternalError)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        # Details that don't parse are skipped: an error path must not raise errors of its own.
        with contextlib.suppress(DecodeError):
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
