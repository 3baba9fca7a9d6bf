"""The error model: classes, google.rpc.Status, and back."""

from __future__ import annotations

import inspect

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.chassis import errors

CODES = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AbortedError: grpc.StatusCode.ABORTED,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.UnimplementedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.DataLossError: grpc.StatusCode.DATA_LOSS,
    errors.CancelledError: grpc.StatusCode.CANCELLED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


def details(status: status_pb2.Status, kind: type) -> list:
    """Return the details of one type."""
    found = []
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            detail.Unpack(message)
            found.append(message)
    return found


def test_every_error_class_has_a_code_in_the_table() -> None:
    """A class that is not in the expectation above fails here, as does one that went away."""
    classes = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ServiceError) and kind is not errors.ServiceError
    }
    assert classes == set(CODES)
    assert {kind: kind.code for kind in classes} == CODES


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_every_error_walks_to_its_status_and_back(kind: type[errors.ServiceError]) -> None:
    """Code, reason, metadata, violations and retry time survive the way over the wire."""
    error = kind(
        "SOME_REASON",
        "some sentence",
        metadata={"model": "echo"},
        violations=[("items[0].model", "is required")],
        retry_after=0.25,
    )
    status = status_pb2.Status.FromString(errors.to_status(error).SerializeToString())
    assert status.code == CODES[kind].value[0]
    (info,) = details(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "SOME_REASON",
        "twinpath",
        {"model": "echo"},
    )
    back = errors.from_status(status)
    assert type(back) is kind
    assert back.reason == "SOME_REASON"
    assert back.message == "some sentence"
    assert back.metadata == {"model": "echo"}
    assert back.violations == [("items[0].model", "is required")]
    assert back.retry_after == 0.25


def test_an_unknown_exception_tells_nothing_about_itself() -> None:
    """The text of an exception that nobody expected may hold data, so it stays inside."""
    status = errors.to_status(RuntimeError("patient 17 has glucose 240"))
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "17" not in str(status)
    assert details(status, error_details_pb2.ErrorInfo)[0].reason == "INTERNAL"


def test_ok_is_no_error() -> None:
    """A status with code 0 gives nothing to raise."""
    assert errors.from_status(status_pb2.Status()) is None


@pytest.mark.parametrize("code", [2, 11, 99])
def test_a_code_outside_the_table_becomes_internal(code: int) -> None:
    """Nobody passes UNKNOWN on, nor a code without a class."""
    error = errors.from_status(status_pb2.Status(code=code, message="what"))
    assert type(error) is errors.InternalError


def test_details_that_are_broken_do_not_break_the_error() -> None:
    """An error path that itself raises would hide the error: bad details are skipped."""
    bad = any_pb2.Any(
        type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff\xff"
    )
    error = errors.from_status(status_pb2.Status(code=5, message="no such task", details=[bad]))
    assert type(error) is errors.NotFoundError
    assert error.message == "no such task"


@settings(deadline=None, max_examples=60)
@example("ü" * 20_000, [])
@example("x" * 20_000, [("ü" * 5_000, "€" * 5_000)] * 40)
@given(
    st.text(max_size=20_000),
    st.lists(st.tuples(st.text(max_size=3_000), st.text(max_size=3_000)), max_size=40),
)
def test_a_status_always_fits_into_trailers(message: str, fields: list) -> None:
    """Trailers above 8 KiB are refused by gRPC, so no error is ever larger, whatever its parts."""
    error = errors.InvalidArgumentError("INVALID_FIELDS", message, violations=fields)
    status = errors.to_status(error)
    on_the_wire = 3 * len(status.message.encode()) + len(status.SerializeToString()) * 4 // 3
    assert on_the_wire < 8_000
    bad = details(status, error_details_pb2.BadRequest)
    assert bool(bad) == bool(fields)
    assert errors.from_status(status).reason == "INVALID_FIELDS"


def test_violations_that_do_not_fit_are_counted() -> None:
    """Who gets a cut list learns how many more there are."""
    fields = [(f"items[{i}].input.tensors[0].name", "is required " * 10) for i in range(500)]
    status = errors.to_status(errors.InvalidArgumentError("X", "x", violations=fields))
    (bad,) = details(status, error_details_pb2.BadRequest)
    named = len(bad.field_violations) - 1
    assert named >= 5
    assert bad.field_violations[-1].description == f"{500 - named} more violations"


def test_metadata_that_is_no_text_is_written_as_text() -> None:
    """A number among the metadata must not turn a clear error into a crash."""
    status = errors.to_status(errors.NotFoundError("X", "x", metadata={"line": 3}))
    assert details(status, error_details_pb2.ErrorInfo)[0].metadata["line"] == "3"
