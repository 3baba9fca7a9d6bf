"""What a drill's callers ask: ordinary requests, and marked restricted ones mixed in.

A marked request can be told by whoever receives its model input, without asking us: it alone gives
`bmi_now`, so it alone has a `bmi_change` that is not zero. So the stand-in vendor's own log says
whether one of them ever reached it.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from twinpath.common.v1 import context_pb2, value_pb2
from twinpath.router.v1 import router_pb2

DIABETES = "diabetes_progression"
TUMOUR = "tumour_triage"
SLOW = "drill_slow"
DEFAULTED = "drill_defaulted"
VENDOR_TUMOUR_MODEL = "tumour_large"  # whatever reaches it is restricted

PLAIN = "plain"
RESTRICTED = "restricted"
INTERACTIVE, NORMAL, BATCH = "interactive", "normal", "batch"

_EVERY = 10  # one request in ten is restricted: of those, half marked, half of a restricted task
_BMI_CHANGE = 10  # its place among the thirteen features
_MARK_BMI = 33.0
_HEADER_LENGTH = "inference-header-content-length"
_LEVELS = {
    INTERACTIVE: context_pb2.PRIORITY_INTERACTIVE,
    NORMAL: context_pb2.PRIORITY_NORMAL,
    BATCH: context_pb2.PRIORITY_BATCH,
}


@dataclass(frozen=True, slots=True)
class Question:
    """One request of the load, and what kind it is."""

    label: str
    request: router_pb2.InferRequest


def usual(number: int) -> Question:
    """The mix of all drills but `overload`."""
    if number % _EVERY == _EVERY - 1:
        return restricted(number, number // _EVERY)
    return Question(PLAIN, about(DIABETES, number))


def defaulted(number: int) -> Question:
    """The usual mix, of a task that decides on defaults while the feature store is away."""
    if number % _EVERY == _EVERY - 1:
        return restricted(number, number // _EVERY)
    return Question(PLAIN, about(DEFAULTED, number))


def restricted(number: int, turn: int) -> Question:
    """A restricted request: of a restricted task, or marked, in turn."""
    request = about(TUMOUR, number) if turn % 2 else marked(number)
    return Question(RESTRICTED, request)


def marked(
    number: int, data_class: int = context_pb2.DATA_CLASS_RESTRICTED
) -> router_pb2.InferRequest:
    """A marked request of the task that may use either path, made stricter by its caller."""
    request = about(DIABETES, number)
    request.fields["bmi_now"].double_value = _MARK_BMI + number % 7 / 8  # baselines are tenths
    request.data_class = data_class  # type: ignore[assignment]
    return request


def interactive(number: int) -> Question:
    """The mix of `noisy`: somebody waits for each answer, and the local path gives it."""
    if number % _EVERY == _EVERY - 1:
        return restricted(number, number // _EVERY)
    request = about(DIABETES, number)
    request.priority = context_pb2.PRIORITY_INTERACTIVE
    request.only_path = context_pb2.PATH_LOCAL
    return Question(INTERACTIVE, request)


def overloading(number: int) -> Question:
    """The mix of `overload`: a sixth is interactive, half is normal, the rest is batch.

    Three times what the model can do is offered, so a sixth of that is half of what it can.
    """
    if number % (6 * _EVERY) == 6 * _EVERY - 1:
        return restricted(number, number // (6 * _EVERY))
    label = (INTERACTIVE, NORMAL, BATCH, NORMAL, BATCH, NORMAL)[number % 6]
    request = about(SLOW, number)
    request.priority = _LEVELS[label]
    return Question(label, request)


def about(task: str, number: int) -> router_pb2.InferRequest:
    """A request of a task about one of four hundred patients."""
    patient = value_pb2.Value(int64_value=1 + number % 400)
    return router_pb2.InferRequest(task=task, entity={"patient_id": patient}, include_plan=True)


def restricted_at_vendor(entries: Iterable[Mapping[str, Any]]) -> int:
    """Count the restricted requests among what the stand-in vendor has logged.

    Args:
        entries: Of its admin's `/admin/log`: every request as it arrived, whatever became of it.
    """
    return sum(_is_restricted(entry) for entry in entries)


def _is_restricted(entry: Mapping[str, Any]) -> bool:
    if entry["method"] != "POST":
        return False
    if VENDOR_TUMOUR_MODEL in str(entry["path"]):
        return True
    headers = {name.lower(): value for name, value in entry["headers"].items()}
    body = base64.b64decode(entry["body_base64"])
    start = int(headers.get(_HEADER_LENGTH, 0))
    at = start + 4 * _BMI_CHANGE
    if not start or len(body) < at + 4:
        return bool(body)  # not what we send: count it, so that nothing hides behind a format
    return bool(struct.unpack_from("<f", body, at)[0] != 0.0)
