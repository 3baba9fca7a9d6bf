"""Two protocols for rows of numbers: SageMaker's, with its signatures, and one of no vendor.

The answer to a row is the sum of its numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any
from urllib.parse import quote

from aiohttp import web

from services.standin.faults import Fault
from services.standin.oip import BadRequestError
from services.standin.wire import BODY, Form, Said, read

ACCESS_KEY = "AKIASTANDINVENDOR000"
_SIGNATURE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)"
    r"/(?P<scope>\d{8}/[a-z0-9-]+/[a-z0-9-]+/aws4_request), "
    r"SignedHeaders=(?P<signed>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)


def signature(request: web.Request, body: bytes, secret: str, scope: str, signed: str) -> str:
    """The signature that a request must have, by AWS's description of version 4."""
    query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(request.query.items())
    )
    lines = [
        request.method,
        quote(request.path, safe="/-_.~"),
        query,
        *(
            f"{name}:{' '.join(request.headers.get(name, '').split())}"
            for name in signed.split(";")
        ),
        "",
        signed,
        hashlib.sha256(body).hexdigest(),
    ]
    whole = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", request.headers.get("X-Amz-Date", ""), scope, whole])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _trimmed(request: web.Request, name: str) -> str:
    return " ".join(request.headers.get(name, "").split())


class _InstancesForm(Form):
    instances: list[list[float]]


class SageMaker:
    """POST /endpoints/standin-score/invocations."""

    path = "/endpoints/standin-score/invocations"

    def authorize(self, request: web.Request, token: str) -> bool:
        """By a signature with the token for a secret; host, date and type must be signed."""
        found = _SIGNATURE.fullmatch(request.headers.get("Authorization", ""))
        if found is None or found["key"] != ACCESS_KEY:
            return False
        signed = found["signed"].split(";")
        if signed != sorted(signed) or not {"content-type", "host", "x-amz-date"} <= set(signed):
            return False
        right = signature(request, request[BODY], token, found["scope"], found["signed"])
        return hmac.compare_digest(right, found["signature"])

    def answer(self, request: web.Request, body: bytes, fault: Fault | None) -> Said:
        """See `Wire`."""
        del request
        form = read(_InstancesForm, body)
        drifted = fault is not None and fault.kind == "version_drift"
        variant = fault.version if fault is not None and drifted else "blue"
        headers = {"x-Amzn-Invoked-Production-Variant": variant}
        return Said({"predictions": [[sum(row)] for row in form.instances]}, headers=headers)

    def error(self, status: int, message: str, fault: Fault | None) -> dict[str, Any]:
        """An error object."""
        del status, fault
        return {"Message": message}

    def error_event(self, message: str) -> bytes:
        """There are no streams, so there is nothing to say in one."""
        del message
        return b""


class _Patient(Form):
    age: float
    bmi: float
    bp: float


class _ScoreForm(Form):
    patient: _Patient
    note: str


class Score:
    """POST /score/v3: JSON of no vendor's habit."""

    path = "/score/v3"

    def authorize(self, request: web.Request, token: str) -> bool:
        """In a header of its own."""
        shown = request.headers.get("X-Score-Key", "")
        return hmac.compare_digest(shown.encode(errors="replace"), f"Key {token}".encode())

    def answer(self, request: web.Request, body: bytes, fault: Fault | None) -> Said:
        """See `Wire`."""
        del request
        form = read(_ScoreForm, body)
        if not form.note.startswith("asked of scorer"):
            raise BadRequestError("note: must name the model")
        drifted = fault is not None and fault.kind == "version_drift"
        version = fault.version if fault is not None and drifted else "v3"
        total = form.patient.age + form.patient.bmi + form.patient.bp
        blocked = fault is not None and fault.kind in ("content_filter", "refusal")
        state = {"model": version, "blocked": blocked}
        return Said({"result": [{"name": "progression", "score": total}], "meta": state})

    def error(self, status: int, message: str, fault: Fault | None) -> dict[str, Any]:
        """An error object."""
        del fault
        return {"problem": {"status": status, "detail": message}}

    def error_event(self, message: str) -> bytes:
        """There are no streams, so there is nothing to say in one."""
        del message
        return b""
