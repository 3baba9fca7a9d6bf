"""What the stand-in's protocols for language models have in common. Their readings are strict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from services.standin.faults import Fault
from services.standin.oip import BadRequestError

M = TypeVar("M", bound=BaseModel)
BODY = web.RequestKey("body", bytes)


class Form(BaseModel):
    """A request's body; what the protocol does not know is refused, as its vendors do."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer.

    Attributes:
        document: The JSON of a whole answer.
        events: Instead of it, the events of a stream, each as it goes over the wire.
        cost_tokens: Tokens in and out; they are billed.
        headers: Further headers.
    """

    document: dict[str, Any] = field(default_factory=dict)
    events: list[bytes] | None = None
    cost_tokens: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Wire(Protocol):
    """One protocol."""

    path: str

    def authorize(self, request: web.Request, token: str) -> bool:
        """Whether a request shows the token as this protocol wants it."""

    def answer(self, request: web.Request, body: bytes, fault: Fault | None) -> Said:
        """Answer a request; raises BadRequestError, UnknownModelError."""

    def error(self, status: int, message: str, fault: Fault | None) -> dict[str, Any]:
        """An error as this protocol words it."""

    def error_event(self, message: str) -> bytes:
        """An error in the middle of a stream."""


def read(form: type[M], body: bytes) -> M:
    """Read a body strictly; raises BadRequestError with the first mistake."""
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise BadRequestError(f"{where}: {fault['msg']}") from error


def strict_schema(schema: Any, where: str = "schema") -> None:
    """Check a schema as vendors do in strict mode; raises BadRequestError."""
    if not isinstance(schema, dict) or "type" not in schema:
        raise BadRequestError(f"{where}: must be an object with a type")
    if schema["type"] == "array":
        strict_schema(schema.get("items"), f"{where}.items")
    if schema["type"] != "object":
        return
    properties = schema.get("properties")
    if not isinstance(properties, dict) or schema.get("additionalProperties") is not False:
        raise BadRequestError(f"{where}: needs properties, and additionalProperties: false")
    if sorted(schema.get("required", [])) != sorted(properties):
        raise BadRequestError(f"{where}: required must name every property")
    for name, one in properties.items():
        strict_schema(one, f"{where}.{name}")
