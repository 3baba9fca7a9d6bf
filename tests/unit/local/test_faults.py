"""Triton's errors: each row of the table, with a text that Triton really writes."""

from __future__ import annotations

import grpc
import pytest

from services.chassis.errors import to_status
from services.local.faults import TABLE, translate

Code = grpc.StatusCode

# Triton's code and text; our code, reason, and whether another replica may answer.
SAMPLES = [
    (
        (Code.UNAVAILABLE, "[request id: 7] Exceeds maximum queue size"),
        (Code.RESOURCE_EXHAUSTED, "TRITON_QUEUE_FULL", True),
    ),
    (
        (Code.UNAVAILABLE, "[request id: 7] Request timeout expired"),
        (Code.DEADLINE_EXCEEDED, "TRITON_QUEUE_TIMEOUT", False),
    ),
    (
        (Code.UNAVAILABLE, "Request for unknown model: 'm' has no available versions"),
        (Code.UNAVAILABLE, "MODEL_UNAVAILABLE", True),
    ),
    (
        (Code.UNAVAILABLE, "failed to connect to all addresses; last error: refused"),
        (Code.UNAVAILABLE, "TRITON_UNAVAILABLE", True),
    ),
    (
        (Code.NOT_FOUND, "Request for unknown model: 'm' is not found"),
        (Code.NOT_FOUND, "MODEL_UNKNOWN", True),
    ),
    (
        (Code.INVALID_ARGUMENT, "input byte size mismatch, secret 1234"),
        (Code.INVALID_ARGUMENT, "MODEL_REFUSED_INPUT", False),
    ),
    (
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (Code.DEADLINE_EXCEEDED, "TRITON_TIMEOUT", False),
    ),
    (
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)"),
        (Code.RESOURCE_EXHAUSTED, "TRITON_MESSAGE_TOO_LARGE", False),
    ),
    (
        (Code.INTERNAL, "Stub process 'm_0' is not healthy."),
        (Code.UNAVAILABLE, "MODEL_UNAVAILABLE", True),
    ),
    (
        (Code.INTERNAL, "failed to allocate 99 bytes"),
        (Code.RESOURCE_EXHAUSTED, "TRITON_OUT_OF_MEMORY", True),
    ),
    (
        (Code.INTERNAL, "Failed to process the request(s): ValueError: secret 1234"),
        (Code.INTERNAL, "MODEL_FAILED", False),
    ),
    ((Code.UNKNOWN, "secret 1234"), (Code.INTERNAL, "MODEL_FAILED", False)),
    (
        (Code.UNIMPLEMENTED, "ModelInfer RPC doesn't support decoupled models"),
        (Code.UNIMPLEMENTED, "TRITON_UNSUPPORTED", False),
    ),
    ((Code.CANCELLED, ""), (Code.UNAVAILABLE, "TRITON_UNAVAILABLE", True)),
    (
        (Code.UNAUTHENTICATED, "no token"),
        (Code.FAILED_PRECONDITION, "TRITON_REFUSED", False),
    ),
    (
        (Code.PERMISSION_DENIED, "not you"),
        (Code.FAILED_PRECONDITION, "TRITON_REFUSED", False),
    ),
]


@pytest.mark.parametrize(("said", "meant"), SAMPLES)
def test_each_row_means_what_the_table_says(
    said: tuple[Code, str], meant: tuple[Code, str, bool]
) -> None:
    """Code, reason and whether to try elsewhere."""
    fault = translate(*said, model="m", version="1")
    assert (fault.error.code, fault.error.reason, fault.elsewhere) == meant
    assert fault.error.metadata == {"model": "m", "version": "1"}


def test_every_row_has_a_sample() -> None:
    """A row can't be added without a test, nor be hidden behind another one."""
    hit = []
    for said, _ in SAMPLES:
        import re

        hit.append(next(r for r in TABLE if r.code is said[0] and re.search(r.text, said[1])))
    assert hit == list(TABLE)


@pytest.mark.parametrize("code", list(Code))
def test_no_code_is_left_without_a_meaning(code: Code) -> None:
    """Whatever Triton says, nobody gets UNKNOWN, and nobody gets its words."""
    error = translate(code, "secret 1234").error
    assert error.code not in (Code.OK, Code.UNKNOWN)
    assert "1234" not in str(to_status(error))
